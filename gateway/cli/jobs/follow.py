"""`tunery jobs watch` and `logs`: a queued job's history, as it is written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import rich_click as click

from tunery.gateway.cli.terminal.progress import show_progress
from tunery.gateway.cli.terminal.tables import when
from tunery.gateway.cli.terminal.text import visible
from tunery.gateway.python.home import open_registry
from tunery.plugins.events import JobEvent, decode_event
from tunery.registry.errors import JobCancelled, JobPaused, TrainingFailed
from tunery.registry.jobs.table import ENDED

if TYPE_CHECKING:
    from tunery.registry.records import StoredEvent
    from tunery.registry.registry import Registry

__all__ = ["COMMANDS", "follow"]

POLL_SECONDS = 0.2


@click.command("watch")
@click.argument("job_id", metavar="JOB")
def watch_job(job_id: str) -> None:
    """Follow a job with its progress until it has ended or is paused; exit as tunery train does."""
    with open_registry() as registry:
        registry.job(job_id)
        follow(registry, job_id)


@click.command("logs")
@click.argument("job_id", metavar="JOB")
@click.option("--follow", "following", is_flag=True, help="Go on until the job has ended.")
def job_logs(job_id: str, following: bool) -> None:
    """Print a job's history, a line for each event."""
    with open_registry() as registry:
        registry.job(job_id)
        events = _events(registry, job_id) if following else _events_so_far(registry, job_id, 0)
        for event in events:
            level = "" if event.level == "info" else f"{event.level}: "
            click.echo(f"{when(event.at)}  {level}{visible(event.message)}")


def follow(registry: Registry, job_id: str) -> None:
    """Show a job's progress until it has ended or is paused.

    Raises TrainingFailed, JobCancelled or JobPaused when it ended without a version.
    """
    with show_progress() as show:
        for stored in _events(registry, job_id):
            if (event := _event(stored)) is not None:
                show(event)
    job = registry.job(job_id)
    match job.state:
        case "failed":
            raise TrainingFailed(job.error or f"{job_id} failed", code=job.code)
        case "cancelled":
            raise JobCancelled(f"{job_id} was cancelled; nothing was published")
        case "paused":
            raise JobPaused(f"{job_id} is paused; continue it with tunery jobs resume {job_id}")
    click.echo(f"{job.adapter}@{job.version}")


def _events(registry: Registry, job_id: str) -> Iterator[StoredEvent]:
    """The history and what is added to it, until the job has ended or is paused."""
    seen, changes = 0, -1
    while True:
        latest = registry.changes()
        if latest == changes:
            time.sleep(POLL_SECONDS)
            continue
        # The state before the events, so that the last of them are not missed.
        changes, state = latest, registry.job(job_id).state
        for event in _events_so_far(registry, job_id, seen):
            seen = event.number
            yield event
        if state in ENDED or state == "paused":
            return


def _events_so_far(registry: Registry, job_id: str, number: int) -> Iterator[StoredEvent]:
    while events := registry.queue.events_after(job_id, number):
        yield from events
        number = events[-1].number


def _event(stored: StoredEvent) -> JobEvent | None:
    """A training event; None for what else is in a history."""
    try:
        return decode_event(msgspec.json.encode({"kind": stored.kind} | stored.data))
    except msgspec.DecodeError:
        return None


COMMANDS = (watch_job, job_logs)
