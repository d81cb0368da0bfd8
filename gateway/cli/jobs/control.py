"""`tunery jobs pause`, `cancel` and `resume`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from tunery.gateway.cli.jobs.listing import state_of
from tunery.gateway.python.home import open_registry
from tunery.registry.errors import Conflict

if TYPE_CHECKING:
    from tunery.plugins.training.job.control import Request
    from tunery.registry import Job
    from tunery.registry.registry import Registry

__all__ = ["COMMANDS"]


@click.command("pause")
@click.argument("job_id", metavar="JOB")
def pause_job(job_id: str) -> None:
    """Stop a job after its current step, with a checkpoint; it can be resumed."""
    job = _ask(job_id, "pause")
    step = "pauses after its current step" if job.state == "running" else "is paused"
    click.echo(f"{job_id} {step}; continue it with {_resuming(job)}")


@click.command("cancel")
@click.argument("job_id", metavar="JOB")
def cancel_job(job_id: str) -> None:
    """Stop a job at once."""
    job = _ask(job_id, "cancel")
    click.echo(f"{job_id} was asked to stop" if job.state == "running" else f"{job_id} is cancelled")


@click.command("resume")
@click.argument("job_id", metavar="JOB")
def resume_job(job_id: str) -> None:
    """Put a paused job back in the queue; a worker goes on from its checkpoint."""
    with open_registry() as registry:
        job = registry.job(job_id)
        if job.request is None:
            raise Conflict(f"{job_id} was not queued; continue it with {_resuming(job)}", code="not_queued")
        registry.queue.resume(job_id)
    click.echo(f"{job_id} is queued")


def _resuming(job: Job) -> str:
    return f"tunery {'jobs resume' if job.request else 'train --resume'} {job.id}"


def _ask(job_id: str, request: Request) -> Job:
    """Ask a job to pause or stop, and return it as it is then."""
    with open_registry() as registry:
        job = registry.job(job_id)
        return registry.queue.request(job_id, request) if job.request is not None else _signal(registry, job, request)


def _signal(registry: Registry, job: Job, request: Request) -> Job:
    """Ask the process that runs a job by itself."""
    from tunery.plugins.training.folder import JobFolder
    from tunery.plugins.training.job.control import signal_job
    from tunery.plugins.training.job.lock import is_running

    folder = JobFolder(registry.home.jobs / job.id)
    if not is_running(folder):
        raise Conflict(f"{job.id} does not run: it is {state_of(registry, job)}")
    signal_job(folder, request)
    return job


COMMANDS = (pause_job, resume_job, cancel_job)
