"""The time of each phase of a job: estimated for the quote, and measured.

A phase is measured without the phases inside it, so that all of them add up to the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

__all__ = ["Phase", "Phases", "estimate_phases", "minutes_text"]

Phase = Literal[
    "loading", "base loss", "base questions", "preflight", "training", "evaluation", "report", "saving", "gates"
]

STARTING_GATES = 10.0
"""Seconds until a fresh process can ask the first gate."""
ENGINES = 2
"""The gates load the base twice: in the precision of training and in that of serving."""
FORWARD = 1 / 3
"""The approximate share of a training step's time that its forward pass takes."""


class Phases:
    """Measures the seconds of each phase."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock, self._inside = clock, 0.0

    @contextmanager
    def of(self, name: Phase) -> Iterator[None]:
        """Add the block's time to the phase `name`, without that of phases inside the block."""
        began, outer, self._inside = self._clock(), self._inside, 0.0
        try:
            yield
        finally:
            took = self._clock() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inside
            self._inside = outer + took

    def get(self, name: Phase) -> float:
        """Seconds of a phase so far."""
        return self.seconds.get(name, 0.0)


def estimate_phases(
    so_far: Phases,
    *,
    training: float,
    evaluations: int,
    held_out_share: float,
    report: bool,
    save_evaluations: int,
    gates: bool,
) -> dict[str, float]:
    """Estimated seconds of every phase, before the first step; phases that are over keep their measured time.

    `training` is the estimate for all steps; `held_out_share`, the number of held-out tokens per trained one, is used
    when this run has not evaluated the base itself. The report evaluates the tuned model as the base was evaluated; so
    do the gates, about, in a process that loads the base again.
    """
    evaluation = so_far.get("base loss") or training * FORWARD * held_out_share
    questions = so_far.get("base questions") or evaluation
    loading = so_far.get("loading")
    return so_far.seconds | {
        "training": training,
        "evaluation": evaluations * evaluation,
        "report": questions if report else 0.0,
        "saving": save_evaluations * evaluation + (loading if save_evaluations else 0.0),
        "gates": STARTING_GATES + ENGINES * loading + questions if gates else 0.0,
    }


def minutes_text(seconds: Mapping[str, float]) -> str:
    """Such as `4.9 minutes (training 4.0, gates 0.6, report 0.3)`, longest first; phases under
    three seconds are summed as `other`."""
    shown = {name: value / 60 for name, value in seconds.items() if value >= 3}
    parts = [f"{name} {value:.1f}" for name, value in sorted(shown.items(), key=lambda item: -item[1])]
    rest = sum(seconds.values()) / 60 - sum(shown.values())
    parts += [f"other {rest:.1f}"] if shown and rest >= 0.05 else []
    total = f"{sum(seconds.values()) / 60:.1f} minutes"
    return f"{total} ({', '.join(parts)})" if len(parts) > 1 else total
