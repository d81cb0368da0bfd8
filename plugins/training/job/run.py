"""Run a job's stages, and leave the job in the state that it ended in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from tunery.plugins.events import Cancelled, Failed, Paused
from tunery.plugins.training.job import stages
from tunery.plugins.training.job.context import JobContext, JobSetup, make_context
from tunery.plugins.training.job.control import resume_advice, watch
from tunery.plugins.training.job.lock import hold_job
from tunery.plugins.training.job.preflight import NotEnoughMemory
from tunery.plugins.training.job.shortages import shortage_explained
from tunery.plugins.training.job.stages import Saved, Trained
from tunery.registry import Version
from tunery.registry.errors import JobPaused, TuneryError
from tunery.registry.records import FileEntry

__all__ = ["publish_job", "reproduce_job"]

T = TypeVar("T")


def publish_job(setup: JobSetup) -> Version:
    """Train and publish a version."""
    job = make_context(setup, report=True)
    return _run(job, lambda saved: stages.publish(job, saved))


def reproduce_job(setup: JobSetup) -> tuple[str, tuple[FileEntry, ...]]:
    """Train, and return the digest and the files that publishing would give; nothing is published."""
    job = make_context(setup, report=False)
    return _run(job, lambda saved: stages.compare(job, saved))


def _run(job: JobContext, finish: Callable[[Saved], T]) -> T:
    """Run all stages. Only the main process holds the job's lock and writes to its folder."""
    if not job.compute.processes.is_main_process:
        return _run_stages(job, finish)
    job_id, recorder = job.setup.job.id, job.recorder
    with hold_job(job.folder, job_id), watch(job.folder) as job.control, recorder.recording():
        try:
            with shortage_explained(job_id):
                recorder.start()
                return _run_stages(job, finish)
        except BaseException as error:
            job.control.end()
            _record_end(job, error)
            raise


def _run_stages(job: JobContext, finish: Callable[[Saved], T]) -> T:
    trained = [_train(job)]
    # The list gives away the only reference to the model: the gates' process needs the memory.
    return job.compute.processes.on_main(lambda: finish(stages.save(job, trained.pop())))


def _train(job: JobContext) -> Trained:
    prepared = stages.prepare(job)
    stages.settle_micro_batch(job, prepared.model)
    return stages.train(job, prepared)


def _record_end(job: JobContext, error: BaseException) -> None:
    """Record why the job ended without a version.

    A job that was asked to stop counts as cancelled, whatever error the interruption was turned into on its way up:
    raise KeyboardInterrupt, which says so and how to go on.
    """
    recorder = job.recorder
    if recorder.published:
        return  # an error after publishing takes nothing back
    if isinstance(error, JobPaused):
        recorder.end(Paused(error=str(error)))
    elif job.control.cancelled or isinstance(error, KeyboardInterrupt):
        recorder.end(Cancelled(error="The job was cancelled" if job.control.cancelled else "interrupted"))
        advice = resume_advice(job.setup.job.id, job.folder, recorder.progress, job.manifest.get("repeats"))
        raise KeyboardInterrupt(advice) from error
    else:
        recorder.end(_failed(error))


def _failed(error: BaseException) -> Failed:
    """The end that an error is; one that nobody foresaw is an `internal_error`, named by its class."""
    if not isinstance(error, TuneryError):
        return Failed(error=f"{type(error).__name__}: {error}", code="internal_error")
    needed = error.needed_bytes if isinstance(error, NotEnoughMemory) else None
    return Failed(error=error.message, code=error.code, needed_bytes=msgspec.UNSET if needed is None else needed)
