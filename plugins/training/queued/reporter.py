"""Write a job's events to its history in the registry, and how far it is.

Steps come faster than is worth a transaction each, so they are collected for half a second; every other event is
written at once, after the steps before it.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from tunery.plugins.events import (
    Cancelled,
    Evaluated,
    Failed,
    GateAnswered,
    JobEvent,
    Paused,
    Quoted,
    Started,
    StepCompleted,
    Succeeded,
    event_fields,
)
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.queued.messages import describe
from tunery.registry.jobs.history import Note
from tunery.registry.jobs.queue import Claim
from tunery.registry.registry import Registry

__all__ = ["Reporter", "note_of"]

FLUSH_SECONDS = 0.5
_ENDS = (Succeeded, Failed, Cancelled, Paused)


class Reporter:
    """An event sink for one claimed job. How the job ends is written by the ledger, with the job's state."""

    def __init__(self, registry: Registry, claim: Claim) -> None:
        self._registry, self._claim = registry, claim
        self._folder = JobFolder(registry.home.jobs / claim.job)
        self._notes: list[Note] = []
        self._progress: dict[str, Any] = {}
        self._flushed = time.monotonic()

    def __call__(self, event: JobEvent) -> None:
        """Take an event; raise Conflict (claim_lost) when the job is another worker's by now."""
        if isinstance(event, _ENDS):
            return
        self._progress |= _progress(event)
        if isinstance(event, Started):
            self._progress["parameters"] = self._folder.read_manifest()["parameters"]
        self._notes.append(note_of(event))
        if not isinstance(event, StepCompleted) or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        notes, progress = self._notes, self._progress
        self._notes, self._progress, self._flushed = [], {}, time.monotonic()
        if notes or progress:
            self._registry.queue.report(self._claim, notes, progress=progress or None)


def note_of(event: JobEvent) -> Note:
    """An event as it is kept in the history."""
    fields = event_fields(event)
    del fields["kind"]
    failed_gate = isinstance(event, GateAnswered) and not event.passed and not event.skipped
    level = "error" if isinstance(event, Failed) else "warn" if failed_gate else "info"
    return Note(kind=event.kind, message=describe(event), level=level, data=fields)


def _progress(event: JobEvent) -> dict[str, Any]:
    """What an event says about how far the job is."""
    match event:
        case Started():
            return {"steps": event.steps, "rows": event.rows}
        case Quoted():
            return {
                "quoted_seconds": 60 * event.minutes, "steps": event.steps, "peak_bytes": event.peak_bytes,
                "quoted_training": event.parts.get("training", 60 * event.minutes),
            }  # fmt: skip
        case StepCompleted():
            return {
                "step": event.step, "steps": event.steps, "trained_tokens": event.tokens, "train_loss": event.loss,
                "loop_seconds": event.seconds,
            }  # fmt: skip
        case Evaluated():
            return {} if event.eval_loss is msgspec.UNSET else {"eval_loss": event.eval_loss}
    return {}
