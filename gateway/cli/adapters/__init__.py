"""`tunery adapters`: list, inspect, move, share, publish and pull versions."""

from __future__ import annotations

import rich_click as click

from tunery.gateway.cli.adapters import aliases, hub, sharing, versions
from tunery.gateway.cli.adapters.lineage import lineage

__all__ = ["adapters"]


@click.group()
def adapters() -> None:
    """List, inspect, move, publish and pull versions of adapters."""


for _command in (*versions.COMMANDS, *aliases.COMMANDS, *sharing.COMMANDS, *hub.COMMANDS, lineage):
    adapters.add_command(_command)
