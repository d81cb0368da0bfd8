"""Options that the commands of `tunery data` share, and what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from tunery.gateway.cli.terminal.context import plugins, say
from tunery.gateway.python.home import open_registry

if TYPE_CHECKING:
    from tunery.plugins.hookspecs import FormatInfo

__all__ = ["base_folder", "format_option", "formats", "max_length_option"]

format_option = click.option("--format", "format_name", metavar="NAME", help="The rows' format.  [default: recognised]")
max_length_option = click.option(
    "--max-length", type=click.IntRange(min=1), default=1024, show_default=True, help="Tokens that training keeps."
)


def base_folder(base: str) -> Path:
    """The folder of a base, fetched first where it is not in the registry."""
    from tunery.plugins.bases.resolve import resolve_base

    with open_registry() as registry:
        return Path(resolve_base(base, registry=registry, plugins=plugins(), say=say).path)


def formats(name: str | None) -> list[FormatInfo]:
    """The format of this name, or all that rows are recognised by."""
    installed = plugins()
    return [installed.format(name)] if name else list(installed.formats().values())
