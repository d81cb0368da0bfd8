"""`tunery jobs submit`: queue a job for a worker, from files on this machine."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from tunery.gateway.cli.jobs.follow import follow
from tunery.gateway.cli.terminal.context import plugins, say
from tunery.gateway.cli.terminal.options import parse_settings
from tunery.gateway.python.home import current_actor, open_registry
from tunery.plugins.parameters import read_parameters
from tunery.registry.errors import InvalidInput
from tunery.registry.jobs.history import Note
from tunery.registry.jobs.job_queue import new_id
from tunery.registry.names import check_adapter, check_alias, tenant_of
from tunery.registry.records import JobRequest

__all__ = ["submit_job"]


@click.command("submit")
@click.option("--method", default="lora", show_default=True, help="The trainer: lora, qlora, full, dpo, or a plugin's.")
@click.option(
    "--base", default="smollm2-135m", show_default=True, help="The base: a name, folder, GGUF file or Hub id."
)
@click.option("--data", multiple=True, required=True, type=click.Path(path_type=Path), help="A file of examples.")
@click.option("--val", "validation", type=click.Path(path_type=Path), help="Held-out rows.")
@click.option("--name", "adapter", required=True, metavar="TENANT/NAME", help="The adapter to make a version of.")
@click.option("--from", "parent", metavar="REFERENCE", help="The version to continue from.")
@click.option("--alias", help="Point this alias at the new version.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter; see tunery plugins --trainer."
)
@click.option("--allow", multiple=True, metavar="RULE", help="Train even if this rule finds errors.")
@click.option("--force", is_flag=True, help="Publish what fails a gate; recorded with the version.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--priority", type=click.IntRange(-100, 100), default=0, show_default=True, help="Higher ones go first.")
@click.option("--watch", is_flag=True, help="Follow the job until it has ended.")
def submit_job(
    method: str,
    base: str,
    data: tuple[Path, ...],
    validation: Path | None,
    adapter: str,
    parent: str | None,
    alias: str | None,
    settings: tuple[str, ...],
    allow: tuple[str, ...],
    force: bool,
    device: str,
    priority: int,
    watch: bool,
) -> None:
    """Queue a job for a worker (tunery worker, or the one in tunery serve), and print its id.

    The files are stored in the registry, so they may be changed or deleted afterwards.
    """
    from tunery.plugins.bases.resolve import resolve_base

    loaded, parameters = plugins(), parse_settings(settings)
    read_parameters(loaded.trainer(method).parameters, parameters)
    check_adapter(adapter)
    if alias is not None:
        check_alias(alias)
    for path in (*data, *([validation] if validation else [])):
        if not path.is_file():
            raise InvalidInput(f"{path} is not a file that can be read", code="invalid_data")
    with open_registry() as registry:
        tenant = tenant_of(adapter)

        def store(path: Path) -> str:
            return registry.data_files.add(
                path, tenant=tenant, purpose="fine-tune", name=path.name, status="processed"
            ).id

        resolved = resolve_base(base, registry=registry, plugins=loaded, say=say)
        continued = registry.resolve(parent).name if parent else None
        request = JobRequest(
            adapter=adapter,
            trainer=method,
            base=resolved.digest,
            data=tuple(map(store, data)),
            validation=store(validation) if validation else None,
            parent=continued,
            alias=alias,
            allow=allow,
            force=force,
            device=device,
            parameters=dict(parameters),
            actor=current_actor(),
        )
        job_id = new_id()
        job = registry.queue.submit(
            request,
            tenant=tenant,
            priority=priority,
            details={"model": resolved.name, "base": resolved.name},
            job_id=job_id,
            notes=[Note(kind="created", message=f"Created fine-tuning job: {job_id}")],
        )
        click.echo(job.id)
        if watch:
            follow(registry, job.id)
