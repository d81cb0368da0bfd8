"""Options that several commands share."""

from __future__ import annotations

import rich_click as click

__all__ = ["as_json"]

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
