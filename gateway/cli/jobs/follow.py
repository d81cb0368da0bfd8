"""`tunery jobs watch` and `logs`: a queued job's history, as it is written."""

from __future__ import annotations

import msgspec
import rich_click as click

from tunery.gateway.cli.jobs.backend import JobsBackend, job_id_argument, with_jobs
from tunery.gateway.cli.terminal.progress import show_progress
from tunery.gateway.cli.terminal.tables import when
from tunery.gateway.cli.terminal.text import visible
from tunery.plugins.events import JobEvent, decode_event
from tunery.registry.errors import JobCancelled, JobPaused, TrainingFailed
from tunery.registry.records import StoredEvent

__all__ = ["COMMANDS", "follow"]


@click.command("watch")
@job_id_argument
@with_jobs
def watch_job(jobs: JobsBackend, job_id: str) -> None:
    """Follow a job with its progress until it has ended or is paused; exit as tunery train does."""
    follow(jobs, job_id)


@click.command("logs")
@job_id_argument
@click.option("--follow", "following", is_flag=True, help="Go on until the job has ended.")
@with_jobs
def job_logs(jobs: JobsBackend, job_id: str, following: bool) -> None:
    """Print a job's history, a line for each event."""
    for event in jobs.events(job_id, following=following):
        level = "" if event.level == "info" else f"{event.level}: "
        click.echo(f"{when(event.at)}  {level}{visible(event.message)}")


def follow(jobs: JobsBackend, job_id: str) -> None:
    """Show a job's progress until it has ended or is paused.

    Raises TrainingFailed, JobCancelled or JobPaused when it ended without a version.
    """
    events = jobs.events(job_id, following=True)
    with show_progress() as show:
        for stored in events:
            if (event := _event(stored)) is not None:
                show(event)
    job = jobs.job(job_id)
    match job.state:
        case "failed":
            raise TrainingFailed(job.error or f"{job_id} failed", code=job.code)
        case "cancelled":
            raise JobCancelled(f"{job_id} was cancelled; nothing was published")
        case "paused":
            raise JobPaused(f"{job_id} is paused; continue it with tunery jobs resume {job_id}")
    click.echo(f"{job.adapter}@{job.version}")


def _event(stored: StoredEvent) -> JobEvent | str | None:
    """A training event, or the text of a warning; None for what else is in a history."""
    try:
        return decode_event(msgspec.json.encode({"kind": stored.kind} | stored.data))
    except msgspec.DecodeError:
        return None if stored.level == "info" else f"warning: {visible(stored.message)}"


COMMANDS = (watch_job, job_logs)
