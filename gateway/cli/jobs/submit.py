"""`tunery jobs submit`: queue a job for a worker, from files on this machine."""

from __future__ import annotations

import rich_click as click

from tunery.gateway.cli.jobs.backend import JobsBackend, with_jobs
from tunery.gateway.cli.jobs.follow import follow
from tunery.gateway.cli.terminal.training_options import TrainingOptions, training_options

__all__ = ["submit_job"]


@click.command("submit")
@training_options(required=True)
@click.option("--priority", type=click.IntRange(-100, 100), default=0, show_default=True, help="Higher ones go first.")
@click.option("--watch", is_flag=True, help="Follow the job until it has ended.")
@with_jobs
def submit_job(jobs: JobsBackend, asked: TrainingOptions, priority: int, watch: bool) -> None:
    """Queue a job for a worker (tunery worker, or the one in tunery serve), and print its id.

    The files are stored in the registry, so they may be changed or deleted afterwards.
    """
    job_id = jobs.submit(asked, priority=priority)
    click.echo(job_id)
    if watch:
        follow(jobs, job_id)
