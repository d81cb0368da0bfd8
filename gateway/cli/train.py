"""`tunery train`: from a file of examples to a version in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.core import ParameterSource

from tunery.gateway.cli.terminal.context import print_json, say
from tunery.gateway.cli.terminal.options import parse_settings, setting_options
from tunery.gateway.cli.terminal.progress import show_progress
from tunery.gateway.cli.terminal.training_options import TrainingOptions, training_options
from tunery.gateway.python import training
from tunery.gateway.python.home import current_actor
from tunery.plugins.runtime.device import resolve_device
from tunery.plugins.training.loop.distributed import is_main_process
from tunery.registry.configuration.settings import TrainingSettings
from tunery.registry.losses import NATS, loss_unit

if TYPE_CHECKING:
    from tunery.plugins.manager import Plugins
    from tunery.registry import Version
    from tunery.registry.registry import Registry

__all__ = ["train"]


@click.command()
@training_options(required=False)
@setting_options(TrainingSettings)
@click.option(
    "--resume", "job", metavar="JOB", help="Resume an interrupted job, with the settings it was started with."
)
@click.option("--json", "as_json", is_flag=True, help="Print the version as JSON.")
@click.pass_context
def train(context: click.Context, asked: TrainingOptions, threads: int | None, job: str | None, as_json: bool) -> None:
    """Train a version of an adapter from files of examples, and publish it to the registry."""
    if job is not None:
        given = {option: value for option, value in context.params.items() if _is_given(context, option)}
        version = _resume(job, given, asked.force, threads)
    elif asked.data and asked.adapter:
        version = _train(asked, threads)
    else:
        raise click.UsageError("name what to train: --data FILE --name TENANT/NAME (or --resume JOB)")
    if not is_main_process():
        return
    if as_json:
        print_json(version)
    else:
        _show(version)


def _train(asked: TrainingOptions, threads: int | None) -> Version:
    with show_progress() as on_event:
        return training.train(
            asked.data,
            name=asked.adapter,
            method=asked.method,
            base=asked.base,
            validation=asked.validation,
            parameters=asked.parameters,
            parent=asked.parent,
            alias=asked.alias,
            allow=asked.allow,
            force=asked.force,
            device=asked.device,
            threads=threads,
            on_event=on_event,
            on_message=say,
        )


def _resume(job: str, given: Mapping[str, Any], force: bool, threads: int | None) -> Version:
    """Go on with a job, unless options were given that are not the job's."""

    def work(registry: Registry, plugins: Plugins) -> Version:
        from tunery.plugins.training.job import launcher

        forced_by = current_actor() if force else None
        return launcher.resume(
            job,
            registry=registry,
            plugins=plugins,
            on_event=on_event,
            forced_by=forced_by,
            options=_resume_options(given),
        )

    with show_progress() as on_event:
        return training.run_job(work, threads=threads)


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
