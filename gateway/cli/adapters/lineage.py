"""`tunery adapters lineage`: where a version comes from, as a tree back to the base."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import when
from tunery.gateway.cli.terminal.text import visible
from tunery.gateway.python.home import open_registry

if TYPE_CHECKING:
    from rich.tree import Tree

    from tunery.registry import Version
    from tunery.registry.versions.lineage import Ancestor, Origin

__all__ = ["lineage"]

_WIDTH = 4096
"""Columns of a pipe: nothing is wrapped."""
_SHORT = 12
_FIRST = ("learning_rate", "epochs", "max_steps", "batch_size", "max_length", "r")


@click.command()
@click.argument("reference")
@click.option("--full", is_flag=True, help="Every parameter, whole digests, and the template's text.")
@as_json
def lineage(reference: str, full: bool, as_json: bool) -> None:
    """What REFERENCE was made of: base, data, settings, and the versions it continued from, back to the first."""
    with open_registry() as registry:
        line = registry.lineage(registry.resolve(reference))
    if as_json:
        print_json([_as_data(each) for each in line])
        return
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=not terminal, width=None if terminal else _WIDTH)
    console.print(_tree(line, full), markup=False)


def _as_data(each: Ancestor) -> dict[str, Any]:
    from tunery.registry.versions.lineage import origin_of

    data = {"version": each.name, "digest": each.digest, "here": each.version is not None, "again": each.again}
    if each.version is not None:
        data |= {"method": each.version.method, "created_at": each.version.created_at}
        data |= msgspec.to_builtins(origin_of(each.version))
    return data


def _tree(line: list[Ancestor], full: bool) -> Tree:
    """The first version at the root, each parent a branch of what was continued from it."""
    from rich.text import Text
    from rich.tree import Tree

    root: Tree | None = None
    node: Tree | None = None
    for each in line:
        heading = Text(visible(_heading(each, full)))
        node = Tree(heading) if node is None else node.add(heading)
        root = root or node
        for branch, leaves in _details(each.version, full) if each.version else ():
            twig = node.add(Text(visible(branch)))
            for leaf in leaves:
                twig.add(Text(visible(leaf)))
    return root or Tree("")


def _heading(each: Ancestor, full: bool) -> str:
    digest = each.digest if full else each.digest[:_SHORT]
    if each.version is None:
        return f"from {each.name}  {digest}  " + ("(above)" if each.again else "(not here)")
    return f"{each.name}  {digest}  {each.version.method}  {when(each.version.created_at)}"


def _details(version: Version, full: bool) -> list[tuple[str, list[str]]]:
    """Lines, each with those that belong under it; what a manifest does not have is left out."""
    from tunery.registry.versions.lineage import origin_of

    origin = origin_of(version)
    cut = None if full else _SHORT
    lines: list[tuple[str, list[str]]] = [(f"base {origin.base}  {origin.base_digest[:cut]}", [])]
    if origin.imported:
        lines.append((f"imported: {_joined(origin.imported)}", []))
    if origin.data:
        rows = [f"{file.rows} rows, {file.role}" if file.rows is not None else file.role for file in origin.data]
        lines.append(
            ("data", [f"{f.name}  {f.sha256[:cut]}  {text}" for f, text in zip(origin.data, rows, strict=True)])
        )
    if origin.allowed:
        lines.append((f"errors in the data that were allowed: {', '.join(map(str, origin.allowed))}", []))
    if origin.template:
        lines.append((f"template {origin.template[:cut]}", [origin.template_text or ""] if full else []))
    if origin.seed is not None:
        lines.append((f"seed {origin.seed}", []))
    if origin.trainer:
        lines.append((f"trainer {origin.trainer} of {origin.plugin}, {origin.job}", []))
    for name, values in (("packages", origin.packages), ("plugins", origin.plugins), ("hardware", origin.hardware)):
        lines += [(f"{name}: {_joined(values)}", [])] if values else []
    return [*lines, *_settings(origin, full)]


def _settings(origin: Origin, full: bool) -> list[tuple[str, list[str]]]:
    """The parameters one looks for first, and those that were chosen for the run; all of them where
    everything is wanted."""
    if not origin.parameters:
        return []
    if full:
        return [("parameters", [f"{name} = {value}" for name, value in origin.parameters.items()])]
    names = [*_FIRST, *(choice["name"] for choice in origin.choices)]
    short = {name: origin.parameters[name] for name in dict.fromkeys(names) if origin.parameters.get(name)}
    return [(f"parameters: {_joined(short)} (--full: all)", [])]


def _joined(values: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in values.items() if value not in (None, [], "")}
    return ", ".join(f"{name} {', '.join(map(str, v)) if isinstance(v, list) else v}" for name, v in shown.items())
