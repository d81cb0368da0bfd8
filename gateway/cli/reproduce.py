"""`tunery reproduce`: train a version again from its manifest and compare the digests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json, setting_options
from tunery.gateway.cli.terminal.progress import show_progress
from tunery.gateway.python import training
from tunery.registry.configuration.settings import TrainingSettings

if TYPE_CHECKING:
    from tunery.plugins.manager import Plugins
    from tunery.plugins.training import Reproduction
    from tunery.registry.registry import Registry

__all__ = ["reproduce"]


@click.command()
@click.argument("reference")
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="A file that the manifest names, if it has moved; matched by content.  [default: where it was]",
)
@setting_options(TrainingSettings)
@as_json
def reproduce(reference: str, data: tuple[Path, ...], threads: int | None, as_json: bool) -> None:
    """Train REFERENCE again from its manifest, publish nothing, and say whether the digest is the
    same; if not, exit with 10."""

    def work(registry: Registry, plugins: Plugins) -> Reproduction:
        from tunery.plugins.training.job import launcher

        version = registry.resolve(reference)
        return launcher.reproduce(version, data=data, registry=registry, plugins=plugins, on_event=on_event)

    with show_progress() as on_event:
        result = training.run_job(work, threads=threads)
    if as_json:
        print_json(result)
    elif result.same:
        click.echo(f"{result.version}: the same digest, {result.digest[:12]}")
    else:
        click.echo(f"{result.version}: {result.digest[:12]} became {result.again[:12]}; what differs:")
        for line in result.differences or ("nothing that is recorded: the hardware or a library is not deterministic",):
            click.echo(f"  {line}")
    if not result.same:
        sys.exit(10)
