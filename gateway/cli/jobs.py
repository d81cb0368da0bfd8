"""`tunery jobs`: what runs and what ran; pausing and cancelling from any terminal."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import print_table, when
from tunery.gateway.python.home import open_registry
from tunery.plugins.events import event_fields, read_events
from tunery.registry.errors import Conflict

if TYPE_CHECKING:
    from tunery.plugins.training.job.control import Request
    from tunery.registry import Job
    from tunery.registry.registry import Registry

__all__ = ["jobs"]


@click.group()
def jobs() -> None:
    """List, inspect, pause and cancel training jobs."""


@jobs.command("list")
@as_json
def list_jobs(as_json: bool) -> None:
    """List every job, newest first."""
    with open_registry() as registry:
        listed = [(job, _state(registry, job)) for job in registry.jobs()]
    if as_json:
        print_json([msgspec.to_builtins(job) | {"state": state} for job, state in listed])
        return
    rows = [(job.id, state, job.adapter, job.trainer, _result(job), when(job.created_at)) for job, state in listed]
    print_table(("job", "state", "adapter", "trainer", "result", "started"), rows, empty="no jobs yet: tunery train")


@jobs.command("show")
@click.argument("job_id", metavar="JOB")
def show_job(job_id: str) -> None:
    """Print a job's state, manifest and last event as JSON."""
    with open_registry() as registry:
        job = registry.job(job_id)
        folder = registry.home.jobs / job_id
        shown: dict[str, Any] = msgspec.to_builtins(job) | {"state": _state(registry, job)}
    if (folder / "manifest.json").exists():
        shown["manifest"] = msgspec.json.decode((folder / "manifest.json").read_bytes())
    shown["last"] = _last_event(folder / "metrics.jsonl")
    print_json(shown)


@jobs.command("pause")
@click.argument("job_id", metavar="JOB")
def pause_job(job_id: str) -> None:
    """Stop a job after its current step, with a checkpoint; tunery train --resume JOB continues it."""
    _signal(job_id, "pause")
    click.echo(f"{job_id} pauses after its current step; continue it with tunery train --resume {job_id}")


@jobs.command("cancel")
@click.argument("job_id", metavar="JOB")
def cancel_job(job_id: str) -> None:
    """Stop a job at once; it can be resumed from its last checkpoint."""
    _signal(job_id, "cancel")
    click.echo(f"{job_id} was asked to stop")


def _signal(job_id: str, request: Request) -> None:
    from tunery.plugins.training.folder import JobFolder
    from tunery.plugins.training.job.control import signal_job
    from tunery.plugins.training.job.lock import is_running

    with open_registry() as registry:
        job = registry.job(job_id)
        folder = registry.home.jobs / job_id
    if not is_running(JobFolder(folder)):
        raise Conflict(f"{job_id} does not run: it is {'interrupted' if job.state == 'running' else job.state}")
    signal_job(JobFolder(folder), request)


def _state(registry: Registry, job: Job) -> str:
    """The job's state; one whose process is gone is interrupted, whatever was written last."""
    from tunery.plugins.training.folder import JobFolder
    from tunery.plugins.training.job.lock import is_running

    if job.state == "running" and not is_running(JobFolder(registry.home.jobs / job.id)):
        return "interrupted"
    return job.state


def _result(job: Job) -> str:
    if job.version is not None:
        return f"{job.adapter}@{job.version}"
    return (job.error or "-").splitlines()[0][:60]


def _last_event(path: Path) -> dict[str, Any] | None:
    """The last event that was written whole."""
    last = deque(read_events(path), maxlen=1)
    return event_fields(last[0]) if last else None
