"""`tunery jobs pause`, `cancel` and `resume`."""

from __future__ import annotations

import rich_click as click

from tunery.gateway.cli.jobs.backend import JobsBackend, job_id_argument, with_jobs

__all__ = ["COMMANDS"]


@click.command("pause")
@job_id_argument
@with_jobs
def pause_job(jobs: JobsBackend, job_id: str) -> None:
    """Stop a job after its current step, with a checkpoint; it can be resumed."""
    job = jobs.request(job_id, "pause")
    step = "pauses after its current step" if job.state == "running" else "is paused"
    resuming = "jobs resume" if job.source == "queue" else "train --resume"
    click.echo(f"{job_id} {step}; continue it with tunery {resuming} {job_id}")


@click.command("cancel")
@job_id_argument
@with_jobs
def cancel_job(jobs: JobsBackend, job_id: str) -> None:
    """Stop a job at once."""
    job = jobs.request(job_id, "cancel")
    click.echo(f"{job_id} was asked to stop" if job.state == "running" else f"{job_id} is cancelled")


@click.command("resume")
@job_id_argument
@with_jobs
def resume_job(jobs: JobsBackend, job_id: str) -> None:
    """Put a job that was paused or has failed back in the queue; a worker goes on from its checkpoint."""
    jobs.resume(job_id)
    click.echo(f"{job_id} is queued")


COMMANDS = (pause_job, resume_job, cancel_job)
