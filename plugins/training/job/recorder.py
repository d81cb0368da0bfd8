"""Record what happens in a job: its events, its manifest, and its state in the registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import msgspec

from tunery.plugins.events import (
    Cancelled,
    Evaluated,
    EventSink,
    Failed,
    JobEvent,
    Paused,
    StepCompleted,
    encode_event,
)
from tunery.plugins.manager import Plugins
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.job.ledger import Ledger
from tunery.registry import Job
from tunery.registry.losses import NATS

__all__ = ["JobRecorder"]


class JobRecorder:
    """Records one job. `manifest` is the job's manifest, changed in place as the job goes on.

    Outside `recording`, which only the main process enters, no events are sent and no manifest is written.
    """

    def __init__(
        self,
        job: Job,
        *,
        folder: JobFolder,
        manifest: dict[str, Any],
        ledger: Ledger,
        plugins: Plugins,
        on_event: EventSink,
    ) -> None:
        self.job, self.folder, self.manifest = job, folder, manifest
        self.ledger, self._plugins, self._on_event = ledger, plugins, on_event
        self._file: BinaryIO | None = None
        self.progress = "before its first step"
        """How far the job is, in words."""

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what happens while the block runs."""
        with self.folder.events.open("ab") as self._file:
            try:
                yield
            finally:
                self._file = None

    def emit(self, event: JobEvent) -> None:
        """Send an event to the job's file, the caller, and every plugin that observes jobs."""
        if self._file is None:
            return
        if isinstance(event, StepCompleted | Evaluated) and self.manifest["loss_unit"] != NATS:
            event = msgspec.structs.replace(event, unit=self.manifest["loss_unit"])
        if isinstance(event, StepCompleted):
            self.progress = f"after step {event.step} of {event.steps}"
        self._file.write(encode_event(event) + b"\n")
        self._file.flush()
        self._on_event(event)
        self._plugins.job_event(self.job, event)

    def write_manifest(self) -> None:
        """Write the manifest as it is now."""
        if self._file is not None:
            self.folder.write_manifest(self.manifest)

    def start(self) -> None:
        """The job runs: record its state and its manifest."""
        self.ledger.start()
        self.write_manifest()

    def end(self, event: Paused | Cancelled | Failed) -> None:
        """The job ended without a version."""
        # On a full disk neither can be written; the error that ended the job says more than that.
        with suppress(OSError):
            self.ledger.end(event)
        with suppress(OSError):
            self.emit(event)

    @property
    def published(self) -> bool:
        """Whether the job's version is in the registry."""
        return self.ledger.published
