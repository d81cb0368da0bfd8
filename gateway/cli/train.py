"""`tunery train`: from a file of examples to a version in the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click
from click.core import ParameterSource

from tunery.gateway.cli.terminal.context import actor, open_registry, plugins, print_json, say
from tunery.gateway.cli.terminal.progress import show_progress
from tunery.plugins.events import EventSink
from tunery.plugins.runtime.device import resolve_device
from tunery.plugins.training.loop.distributed import is_main_process
from tunery.registry.errors import InvalidInput, JobCancelled
from tunery.registry.home import Home
from tunery.registry.losses import NATS, loss_unit
from tunery.registry.names import check_adapter
from tunery.registry.settings import read_settings

if TYPE_CHECKING:
    from tunery.registry import Version

__all__ = ["parse_settings", "run_job", "threads_option", "train"]

_LARGE = 10_000_000
"""Bytes of rows whose check takes seconds."""

T = TypeVar("T")

threads_option = click.option(
    "--threads", type=click.IntRange(0), help="Threads that compute; 0 for all usable cores.  [default: 0]"
)


@click.command()
@click.option("--method", default="lora", show_default=True, help="The trainer: lora, qlora, full, dpo, or a plugin's.")
@click.option(
    "--base", default="smollm2-135m", show_default=True, help="The base: a name, folder, GGUF file or Hub id."
)
@click.option("--data", multiple=True, type=click.Path(path_type=Path), help="A file of examples; may be repeated.")
@click.option(
    "--val", "validation", type=click.Path(path_type=Path), help="Held-out rows.  [default: a share of --data]"
)
@click.option("--name", "adapter", metavar="TENANT/NAME", help="The adapter to make a version of.")
@click.option("--from", "parent", metavar="REFERENCE", help="The version to continue from.")
@click.option("--alias", help="Point this alias at the new version.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter; see tunery plugins --trainer."
)
@click.option("--allow", multiple=True, metavar="RULE", help="Train although this rule of data check finds errors.")
@click.option("--force", is_flag=True, help="Publish what fails a gate; recorded with the version.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@threads_option
@click.option("--resume", "job", metavar="JOB", help="Go on with an interrupted job, as it began.")
@click.option("--json", "as_json", is_flag=True, help="Print the version as JSON.")
@click.pass_context
def train(
    context: click.Context,
    method: str,
    base: str,
    data: tuple[Path, ...],
    validation: Path | None,
    adapter: str | None,
    parent: str | None,
    alias: str | None,
    settings: tuple[str, ...],
    allow: tuple[str, ...],
    force: bool,
    device: str,
    threads: int | None,
    job: str | None,
    as_json: bool,
) -> None:
    """Train a version of an adapter from files of examples, and publish it to the registry."""
    if job is None and not (data and adapter):
        raise click.UsageError("say what to train: --data FILE --name TENANT/NAME (or --resume JOB)")
    if job is not None:
        given = {name: value for name, value in context.params.items() if _is_given(context, name)}
        version = run_job(
            lambda host, loaded, registry, on_event: host.resume(
                job,
                registry=registry,
                plugins=loaded,
                on_event=on_event,
                forced_by=actor() if force else None,
                options=_resume_options(given),
            ),
            threads,
        )
    else:
        from tunery.plugins.data.read import data_size
        from tunery.plugins.parameters import read_parameters

        info = plugins().trainer(method)
        values = parse_settings(settings)
        parameters = read_parameters(info.parameters, values)
        check_adapter(adapter or "")
        files = (*data, *([validation] if validation else []))
        for path in files:
            _check_file(path)
        if (size := sum(map(data_size, files))) > _LARGE:
            say(f"checking {size / 1e6:.0f} MB of rows")

        def start(host: Any, loaded: Any, registry: Any, on_event: EventSink) -> Version:
            from tunery.plugins.bases.resolve import resolve_base
            from tunery.plugins.training.loop.distributed import connect_process_group

            where = resolve_device(device)
            known = connect_process_group(where).on_main(
                lambda: resolve_base(base, registry=registry, plugins=loaded, say=say)
            )
            request = host.TrainRequest(
                adapter=adapter,
                trainer=method,
                base=known.digest,
                data=tuple(str(path.absolute()) for path in data),
                validation=str(validation.absolute()) if validation else None,
                parent=parent,
                alias=alias,
                device=where,
                parameters=values,
                allow=allow,
                force=force,
                actor=actor(),
            )
            version: Version = host.train(request, parameters, registry=registry, plugins=loaded, on_event=on_event)
            return version

        version = run_job(start, threads)
    if not is_main_process():
        return
    if as_json:
        print_json(version)
    else:
        _show(version)


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """`name=value` pairs; raise InvalidInput for what is none."""
    values: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise InvalidInput(
                f"--set {setting!r}: write NAME=VALUE, for example learning_rate=2e-4", code="invalid_parameter"
            )
        values[name.strip()] = value.strip()
    return values


def run_job(work: Callable[[Any, Any, Any, EventSink], T], threads: int | None = None) -> T:
    """Run a job with allocator and threads set before torch is there, and progress on stderr."""
    from tunery.plugins.runtime.compute import prepare_compute

    home = Home.from_env()
    settings = read_settings(home.root, overrides={"training": {"threads": threads}}).training
    prepare_compute(settings.threads)
    from tunery.plugins import training

    try:
        with open_registry() as registry, show_progress() as on_event:
            return work(training, plugins(), registry, on_event)
    except KeyboardInterrupt as stop:
        early = "interrupted before there was a job; nothing was changed"
        raise JobCancelled(
            str(stop) or (early if is_main_process() else "another process of this run was interrupted")
        ) from stop


def _check_file(path: Path) -> None:
    if not path.exists():
        raise InvalidInput(f"{path} is not a file that can be read", code="invalid_data")


def _is_given(context: click.Context, name: str) -> bool:
    """Whether somebody wrote this option, instead of leaving it to its default."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _resume_options(given: Mapping[str, Any]) -> Any:
    """The options beside --resume that must be the job's."""
    from tunery.plugins.training.job.resume import ResumeOptions

    return ResumeOptions(
        trainer=given.get("method"),
        base=given.get("base"),
        adapter=given.get("adapter"),
        parent=given.get("parent"),
        alias=given.get("alias"),
        device=resolve_device(given["device"]) if "device" in given else None,
        data=given.get("data", ()),
        validation=given.get("validation"),
        allow=given.get("allow", ()),
        parameters=parse_settings(given.get("settings", ())),
    )


def _show(version: Version) -> None:
    metrics = version.metrics
    click.echo(f"{version.name}  {version.digest[:12]}  {version.size / 1e6:.1f} MB")
    if "base_loss" in metrics and "eval_loss" in metrics:
        base, tuned = metrics["base_loss"], metrics["eval_loss"]
        unit = loss_unit(version)
        name = "held-out loss" if unit == NATS else f"held-out {unit}"
        click.echo(f"{name} {base:.4f} → {tuned:.4f} ({100 * (tuned - base) / base:+.1f} %)")
    if version.aliases:
        click.echo(f"aliases: {', '.join(version.aliases)}")
