"""`tunery bases`: list and add base models."""

from __future__ import annotations

import rich_click as click

from tunery.gateway.cli.terminal.context import plugins, print_json, say
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import print_table
from tunery.gateway.python.home import open_registry

__all__ = ["bases"]


@click.group()
def bases() -> None:
    """List and add base models."""


@bases.command("list")
@as_json
def list_bases(as_json: bool) -> None:
    """List the bases in the registry."""
    with open_registry() as registry:
        known = registry.bases()
    if as_json:
        print_json(known)
        return
    rows = [(base.name, base.digest[:12], f"{base.parameters / 1e6:.1f} M", base.source) for base in known]
    print_table(("name", "digest", "parameters", "source"), rows, empty="no bases yet: tunery bases add smollm2-135m")


@bases.command("add")
@click.argument("reference")
@click.option("--name", help="Its name in this registry.  [default: from REFERENCE]")
@as_json
def add_base(reference: str, name: str | None, as_json: bool) -> None:
    """Add a base from REFERENCE: smollm2-135m, a folder, a GGUF file, or a Hub id such as org/name@revision (a
    subfolder of it: org/name/folder@revision)."""
    from tunery.plugins.bases.resolve import resolve_base

    with open_registry() as registry:
        base = resolve_base(reference, registry=registry, plugins=plugins(), name=name, say=say)
    if as_json:
        print_json(base)
    else:
        click.echo(f"{base.name}  {base.digest[:12]}  {base.parameters / 1e6:.1f} M parameters  {base.path}")
