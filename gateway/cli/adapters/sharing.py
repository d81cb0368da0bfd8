"""`tunery adapters share` and `unshare`: let other tenants use an adapter."""

from __future__ import annotations

import rich_click as click

from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.python.home import current_actor, open_registry

__all__ = ["COMMANDS"]


@click.command("share")
@click.argument("adapter")
@click.option("--with", "tenants", required=True, help="Tenants, separated by commas; all for every tenant.")
@click.option(
    "--share-prefixes/--no-share-prefixes",
    default=None,
    help="Let all who use it share the KV cache of prompts: faster, but its time shows what others have asked.",
)
@as_json
def share(adapter: str, tenants: str, share_prefixes: bool | None, as_json: bool) -> None:
    """Let other tenants use ADAPTER, in addition to those who may already. They cannot change, copy or train on it."""
    with open_registry() as registry:
        shared = registry.sharing.share(
            adapter, _names(tenants), actor=current_actor(), share_prefixes=share_prefixes
        )  # fmt: skip
    if as_json:
        print_json(shared)
    else:
        prefixes = ", with its prefix cache" if shared.share_prefixes else ""
        click.echo(f"{adapter} is shared with {', '.join(shared.tenants)}{prefixes}")


@click.command("unshare")
@click.argument("adapter")
@click.option("--with", "tenants", help="Only these tenants, separated by commas.  [default: all of them]")
@as_json
def unshare(adapter: str, tenants: str | None, as_json: bool) -> None:
    """Share ADAPTER no more. Running servers follow within a second."""
    with open_registry() as registry:
        left = registry.sharing.unshare(adapter, _names(tenants) if tenants else None, actor=current_actor())
    if as_json:
        print_json(left)
    else:
        click.echo(f"{adapter} is shared with {', '.join(left.tenants) if left else 'nobody'}")


COMMANDS = (share, unshare)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
