"""`tunery jobs list` and `show`."""

from __future__ import annotations

import msgspec
import rich_click as click

from tunery.gateway.cli.jobs.backend import JobsBackend, JobView, job_id_argument, with_jobs
from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import print_table, when
from tunery.gateway.cli.terminal.text import visible

__all__ = ["COMMANDS"]


@click.command("list")
@as_json
@with_jobs
def list_jobs(jobs: JobsBackend, as_json: bool) -> None:
    """List every job, newest first."""
    listed = jobs.jobs()
    if as_json:
        print_json(listed)
        return
    rows = [(job.id, job.state, job.adapter, job.trainer, _result(job), _started(job)) for job in listed]
    print_table(("job", "state", "adapter", "trainer", "result", "started"), rows, empty="no jobs yet: tunery train")


@click.command("show")
@job_id_argument
@with_jobs
def show_job(jobs: JobsBackend, job_id: str) -> None:
    """Print a job with its last event as JSON, and with its manifest where its folder is on this machine."""
    print_json(msgspec.to_builtins(jobs.job(job_id)) | jobs.details(job_id))


def _started(job: JobView) -> str:
    """When the job began; one of `tunery train` does so when it is made."""
    at = job.created_at if job.source == "train" else job.started_at
    return "-" if at is None else when(at)


def _result(job: JobView) -> str:
    if job.version is not None:
        return f"{job.adapter}@{job.version}"
    return visible((job.error or job.waiting or "-").splitlines()[0][:60])


COMMANDS = (list_jobs, show_job)
