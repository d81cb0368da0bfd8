"""What an executor does: start the process that trains a claimed job, somewhere, and say when it has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from tunery.registry.jobs.queue import Claim
from tunery.registry.records import Job

__all__ = ["Assignment", "Executor", "RunningJob"]


class Assignment(msgspec.Struct, frozen=True):
    """A claimed job to run: `python -m tunery.plugins.training.queued.process JOB FENCE` with TUNERY_HOME set to `home`.

    `home` is the registry's; the process needs the same one.
    """

    job: Job
    claim: Claim
    home: Path


class RunningJob(Protocol):
    """A job's process."""

    def poll(self) -> int | None:
        """The process's exit code, None while it runs; negative for the signal that killed it."""

    def stop(self) -> None:
        """Ask the process to give its job back to the queue, with a checkpoint. Returns at once."""

    def kill(self) -> None:
        """End the process now."""


class Executor(Protocol):
    """Starts processes. The worker that owns it calls it from one thread.

    A process that ends in any way but with exit code 0 has lost its job: the worker gives that back to the queue, and
    it goes on from its checkpoint. An executor may run a job at most once per assignment, and must not restart a
    process by itself: a second one would have the same claim.
    """

    def start(self, assignment: Assignment) -> RunningJob:
        """Start the process; raise a TuneryError when that cannot be done."""
