"""`tunery data`: check files of examples, see what of a row is trained, and split a file without leaks."""

from __future__ import annotations

import rich_click as click

from tunery.gateway.cli.data.check import check
from tunery.gateway.cli.data.preview import preview
from tunery.gateway.cli.data.split import split

__all__ = ["data"]


@click.group()
def data() -> None:
    """Check, preview and split files of examples."""


for _command in (check, preview, split):
    data.add_command(_command)
