"""Events in words, for a job's history; those that OpenAI has too are in its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tunery.plugins.events import (
    Cancelled,
    CheckpointChosen,
    CheckpointSaved,
    Evaluated,
    Failed,
    GateAnswered,
    JobEvent,
    Paused,
    PhasesTimed,
    Quoted,
    ReportWritten,
    Started,
    StepCompleted,
    Succeeded,
)
from tunery.plugins.training.job.phases import minutes_text

__all__ = ["describe"]


def describe(event: JobEvent) -> str:
    """An event in words."""
    words = _WORDS.get(type(event))
    return words(event) if words else event.kind


def _quoted(event: Quoted) -> str:
    return f"The job will take about {minutes_text(event.parts or {'training': 60 * event.minutes})}"


def _evaluated(event: Evaluated) -> str:
    if event.step == 0:
        return f"The base's loss on the held-out rows: {_number(event.base_loss)}"
    return f"Step {event.step}: full validation loss={_number(event.eval_loss)}"


def _gate(event: GateAnswered) -> str:
    state = "passed" if event.passed else "skipped" if event.skipped else "failed"
    return f"Gate {event.name} {state}: {event.message}"


def _number(value: Any) -> str:
    return "unknown" if value is msgspec.UNSET or value is None else f"{value:.2f}"


_WORDS: dict[type[JobEvent], Callable[[Any], str]] = {
    Started: lambda event: "Fine-tuning job started",
    Quoted: _quoted,
    StepCompleted: lambda event: f"Step {event.step}/{event.steps}: training loss={event.loss:.2f}",
    Evaluated: _evaluated,
    CheckpointSaved: lambda event: f"The job can go on from step {event.step}",
    CheckpointChosen: lambda event: f"Step {event.step} is kept: {event.why}",
    ReportWritten: lambda event: "\n".join(event.lines),
    GateAnswered: _gate,
    PhasesTimed: lambda event: f"The work took {minutes_text(event.seconds)}",
    Succeeded: lambda event: "The job has successfully completed",
    Failed: lambda event: event.error,
    Cancelled: lambda event: event.error,
    Paused: lambda event: event.error,
}
