"""`tunery reproduce`: train a version again from its manifest and compare the digests."""

from __future__ import annotations

import sys
from pathlib import Path

import rich_click as click

from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.train import run_job, threads_option

__all__ = ["reproduce"]


@click.command()
@click.argument("reference")
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Where a file of the manifest lies now; found by its content.  [default: where it was]",
)
@threads_option
@as_json
def reproduce(reference: str, data: tuple[Path, ...], threads: int | None, as_json: bool) -> None:
    """Train REFERENCE again from its manifest, publish nothing, and say whether the digest is the same; if not, exit with 10."""
    found = run_job(
        lambda host, loaded, registry, on_event: host.reproduce(
            registry.resolve(reference), data=data, registry=registry, plugins=loaded, on_event=on_event
        ),
        threads,
    )
    if as_json:
        print_json(found)
    elif found.same:
        click.echo(f"{found.version}: the same digest, {found.digest[:12]}")
    else:
        click.echo(f"{found.version}: {found.digest[:12]} became {found.again[:12]}; what differs:")
        for line in found.differences or ("nothing that is recorded: the hardware or a library is not deterministic",):
            click.echo(f"  {line}")
    if not found.same:
        sys.exit(10)
