"""Record a job's state in the registry: of a job that this process runs by itself, or of one claimed from the queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from tunery.plugins.events import Cancelled, Failed, Paused
from tunery.registry import NewVersion, Version
from tunery.registry.jobs.success import Success
from tunery.registry.registry import Registry

__all__ = ["ClaimedJob", "Ledger", "OwnJob"]


class Ledger(Protocol):
    """The state of one job."""

    @property
    def published(self) -> bool:
        """Whether the job's version is in the registry."""

    def start(self) -> None:
        """The job runs."""

    def flush(self) -> None:
        """Write the history up to now, before a checkpoint: what comes before that is not done again."""

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether what was trained after each epoch is kept as a model."""

    def keep_checkpoint(self, new: NewVersion, step: int) -> None:
        """Keep files in PEFT layout as the model of a step."""

    def publish(self, new: NewVersion) -> Version:
        """Publish the job's version, and with it the job's success."""

    def succeed(self) -> None:
        """The job succeeded without a version."""

    def end(self, event: Paused | Cancelled | Failed) -> None:
        """The job ended without a version."""


class OwnJob:
    """A job of `tunery train`, which nobody else runs."""

    def __init__(self, registry: Registry, job_id: str) -> None:
        self._registry, self._job = registry, job_id

    @property
    def published(self) -> bool:
        """Whether the job's version is in the registry."""
        return self._registry.job(self._job).version is not None

    def start(self) -> None:
        """The job runs."""
        self._registry.update_job(self._job, state="running")

    def flush(self) -> None:
        """Nothing: its only history is the file that is written as it goes on."""

    keeps_checkpoints = False

    def keep_checkpoint(self, new: NewVersion, step: int) -> None:
        """Its checkpoints have no name that could be asked for."""
        raise NotImplementedError("only queued jobs keep checkpoints as models")

    def publish(self, new: NewVersion) -> Version:
        """Publish the job's version, and with it the job's success."""
        return self._registry.publish(new, job=Success(job=self._job))

    def succeed(self) -> None:
        """The job succeeded without a version."""
        self._registry.update_job(self._job, state="succeeded")

    def end(self, event: Paused | Cancelled | Failed) -> None:
        """The job ended without a version."""
        code = event.code if isinstance(event, Failed) and event.code is not msgspec.UNSET else None
        self._registry.update_job(self._job, state=event.kind, error=event.error, code=code)


class ClaimedJob:
    """A job claimed from the queue: what is recorded counts only while the claim is the job's last.

    `on_flush` writes what was collected of its history; `on_end` records how the job ended without a version; a job may be given back to the queue instead.
    """

    def __init__(
        self,
        registry: Registry,
        success: Success,
        *,
        on_flush: Callable[[], None],
        on_end: Callable[[Paused | Cancelled | Failed], None],
    ) -> None:
        self._registry, self._success, self._on_flush, self._on_end = registry, success, on_flush, on_end
        self.published = False

    def start(self) -> None:
        """The job runs since it was claimed."""

    def flush(self) -> None:
        """Write the history up to now, before a checkpoint: what comes before that is not done again."""
        self._on_flush()

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether the job's version will have a name that those of its checkpoints begin with."""
        return self._success.model_name is not None

    def keep_checkpoint(self, new: NewVersion, step: int) -> None:
        """Keep files in PEFT layout as the model of a step."""
        success = self._success
        if success.claim is None or success.model_name is None:
            raise ValueError(f"{success.job} has no claim or no name for its models")
        self.flush()
        name = f"{success.model_name}:ckpt-step-{step}"
        self._registry.checkpoints.keep(new, claim=success.claim, step=step, name=name)

    def publish(self, new: NewVersion) -> Version:
        """Publish the job's version, and with it the job's success."""
        version = self._registry.publish(new, job=self._success)
        self.published = True
        return version

    def succeed(self) -> None:
        """A queued job always makes a version."""
        raise NotImplementedError("a queued job ends by publishing its version")

    def end(self, event: Paused | Cancelled | Failed) -> None:
        """The job ended without a version."""
        self._on_end(event)
