"""`tunery eval`: measure models on held-out rows, one against another, and see what was measured."""

from __future__ import annotations

import rich_click as click

from tunery.gateway.cli.eval import listing
from tunery.gateway.cli.eval.run import run_eval

__all__ = ["evaluations"]


@click.group("eval")
def evaluations() -> None:
    """Measure models on held-out rows, and one against another."""


for _command in (run_eval, *listing.COMMANDS):
    evaluations.add_command(_command)
