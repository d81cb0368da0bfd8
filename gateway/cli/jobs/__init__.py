"""`tunery jobs`: what waits, runs and ran; submitting, following, pausing and cancelling from any terminal."""

from __future__ import annotations

import rich_click as click

from tunery.gateway.cli.jobs import control, follow, listing
from tunery.gateway.cli.jobs.submit import submit_job

__all__ = ["jobs"]


@click.group()
def jobs() -> None:
    """Submit, list, follow, pause and cancel training jobs."""


for _command in (*listing.COMMANDS, submit_job, *follow.COMMANDS, *control.COMMANDS):
    jobs.add_command(_command)
