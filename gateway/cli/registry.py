"""`tunery registry`: the database itself."""

from __future__ import annotations

import rich_click as click

from tunery.gateway.cli.terminal.context import print_json, say
from tunery.gateway.cli.terminal.options import as_json
from tunery.registry.home import Home

__all__ = ["registry"]


@click.group()
def registry() -> None:
    """Rebuild a lost registry from its manifests."""


@registry.command("rebuild")
@as_json
def rebuild_registry(as_json: bool) -> None:
    """Take in every version, alias and base that the manifests beside the blobs tell of and the database does not know.

    A database that is damaged is moved aside first, never deleted. Jobs are not made again.
    """
    from tunery.registry.versions.rebuild import rebuild

    done = rebuild(Home.from_env())
    if as_json:
        print_json(done)
        return
    if done.moved_aside:
        say(f"the damaged database is in {done.moved_aside} now")
    for name in done.unfinished:
        say(f"{name}: its publication may not have come to its end; remove it if it is not wanted")
    for name in done.unreadable:
        say(f"{name}: its manifest cannot be read and is left out")
    click.echo(f"took in {done.versions} versions, {done.bases} bases and {done.moves} moves of aliases")
    click.echo("compare the files with their digests: tunery adapters verify")
