"""Options that several commands share, and reading what was given to them."""

from __future__ import annotations

from collections.abc import Sequence

import rich_click as click

from tunery.registry.errors import InvalidInput

__all__ = ["as_json", "parse_settings", "threads_option"]

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
threads_option = click.option(
    "--threads", type=click.IntRange(0), help="Threads that compute; 0 for all usable cores.  [default: 0]"
)


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """`name=value` pairs; raise InvalidInput for anything else."""
    values: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise InvalidInput(
                f"--set {setting!r}: write NAME=VALUE, for example learning_rate=2e-4", code="invalid_parameter"
            )
        values[name.strip()] = value.strip()
    return values
