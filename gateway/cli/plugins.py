"""`tunery plugins`: what is installed, what it hooks into, what failed, and what trainers accept."""

from __future__ import annotations

from typing import Any

import msgspec
import rich_click as click

from tunery.gateway.cli.terminal.context import plugins as installed
from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import print_table
from tunery.plugins.hookspecs import TrainerInfo
from tunery.plugins.parameters import describe_parameters

__all__ = ["plugins"]


@click.command()
@click.option("--trainer", "trainer", metavar="NAME", help="Show one trainer's parameters.")
@click.option("--trainers", is_flag=True, help="List the trainers.")
@as_json
def plugins(trainer: str | None, trainers: bool, as_json: bool) -> None:
    """List plugins with their hooks and failures; or trainers, or one trainer's parameters."""
    loaded = installed()
    if trainer is not None:
        _show_trainer(loaded.trainer(trainer), as_json)
    elif trainers:
        _show_trainers(list(loaded.trainers().values()), as_json)
    elif as_json:
        print_json(loaded.records())
    else:
        rows = [
            (r.name, f"{r.distribution} {r.version}", ", ".join(r.hooks) or "-", r.error or "ok")
            for r in loaded.records()
        ]
        print_table(("plugin", "package", "hooks", "state"), rows, empty="no plugins")


def _show_trainers(infos: list[TrainerInfo], as_json: bool) -> None:
    rows = [(info.name, ", ".join(info.methods), ", ".join(info.devices), info.summary) for info in infos]
    if as_json:
        names = ("name", "methods", "devices", "summary")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        print_table(("trainer", "methods", "devices", "summary"), rows, empty="no trainers")


def _show_trainer(info: TrainerInfo, as_json: bool) -> None:
    parameters = describe_parameters(info.parameters)
    if as_json:
        schema = msgspec.json.schema(info.parameters)
        properties = schema["$defs"][info.parameters.__name__]["properties"]
        for each in parameters:
            properties[each.name]["default"] = each.default
        print_json(schema)
        return
    rows = [(each.name, _shown(each.default), each.type, each.description) for each in parameters]
    print_table(("parameter", "default", "type", "what it is for"), rows, empty="no parameters")


def _shown(value: Any) -> str:
    """As it is written after `--set name=`."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return (
        str(value).lower()
        if isinstance(value, bool) or value is None
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
