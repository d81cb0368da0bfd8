"""`tunery jobs list` and `show`."""

from __future__ import annotations

import time
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

if TYPE_CHECKING:
    from tunery.registry import Job
    from tunery.registry.registry import Registry

__all__ = ["COMMANDS", "state_of"]


@click.command("list")
@as_json
def list_jobs(as_json: bool) -> None:
    """List every job, newest first."""
    with open_registry() as registry:
        listed = [(job, state_of(registry, job)) for job in registry.jobs()]
    if as_json:
        print_json([msgspec.to_builtins(job) | {"state": state} for job, state in listed])
        return
    rows = [(job.id, state, job.adapter, job.trainer, _result(job), when(job.created_at)) for job, state in listed]
    print_table(("job", "state", "adapter", "trainer", "result", "started"), rows, empty="no jobs yet: tunery train")


@click.command("show")
@click.argument("job_id", metavar="JOB")
def show_job(job_id: str) -> None:
    """Print a job's state, manifest and last event as JSON."""
    with open_registry() as registry:
        job = registry.job(job_id)
        folder = registry.home.jobs / job_id
        shown: dict[str, Any] = msgspec.to_builtins(job) | {"state": state_of(registry, job)}
    if (folder / "manifest.json").exists():
        shown["manifest"] = msgspec.json.decode((folder / "manifest.json").read_bytes())
    shown["last"] = _last_event(folder / "metrics.jsonl")
    print_json(shown)


def state_of(registry: Registry, job: Job) -> str:
    """The job's state; one whose process is gone is interrupted, whatever was written last."""
    if job.state != "running":
        return job.state
    if job.request is not None:
        return "interrupted" if (job.lease_until or 0.0) < time.time() else "running"
    from tunery.plugins.training.folder import JobFolder
    from tunery.plugins.training.job.lock import is_running

    return "running" if is_running(JobFolder(registry.home.jobs / job.id)) else "interrupted"


def _result(job: Job) -> str:
    if job.version is not None:
        return f"{job.adapter}@{job.version}"
    return (job.error or job.waiting or "-").splitlines()[0][:60]


def _last_event(path: Path) -> dict[str, Any] | None:
    """The last event that was written whole."""
    last = deque(read_events(path), maxlen=1)
    return event_fields(last[0]) if last else None


COMMANDS = (list_jobs, show_job)
