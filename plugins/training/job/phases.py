"""What a run's time goes to, phase by phase: foretold in the quote, and measured.

Phases are measured without what runs inside them under a name of its own, so that they add up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

__all__ = ["Phase", "Phases", "foretell", "minutes_text"]

Phase = Literal[
    "loading", "base loss", "base questions", "preflight", "training", "evaluation", "report", "saving", "gates"
]

STARTING_GATES = 10.0
"""Seconds until a fresh process can ask the first gate."""
ENGINES = 2
"""The gates load the base twice: as it was trained on, and as it will be served."""
FORWARD = 1 / 3
"""The share of a training step's time that its forward pass takes, about."""


class Phases:
    """The seconds of each phase so far."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock, self._inside = clock, 0.0

    @contextmanager
    def of(self, name: Phase) -> Iterator[None]:
        """Count the block's time for `name`, but for what is counted for others inside it."""
        began, outer, self._inside = self._clock(), self._inside, 0.0
        try:
            yield
        finally:
            took = self._clock() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inside
            self._inside = outer + took

    def get(self, name: Phase) -> float:
        """Seconds of a phase; 0 where it has not been."""
        return self.seconds.get(name, 0.0)


def foretell(
    so_far: Phases,
    *,
    training: float,
    evaluations: int,
    held_out_share: float,
    report: bool,
    save_evaluations: int,
    gates: bool,
) -> dict[str, float]:
    """Seconds of every phase of a run that is about to take its first step; what is over is as it was measured.

    `training` is what the steps will take, and `held_out_share` how many tokens are held out for each that is trained on, which is used
    where this run has not measured the base itself. The report asks the tuned model what the base was asked; the gates ask about as
    much, in a process that loads the base anew.
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
    """Such as `4.9 minutes (training 4.0, gates 0.6, report 0.3)`, longest first; what takes no tenth of a minute is summed up."""
    shown = {name: value / 60 for name, value in seconds.items() if value >= 3}
    parts = [f"{name} {value:.1f}" for name, value in sorted(shown.items(), key=lambda item: -item[1])]
    rest = sum(seconds.values()) / 60 - sum(shown.values())
    parts += [f"other {rest:.1f}"] if shown and rest >= 0.05 else []
    total = f"{sum(seconds.values()) / 60:.1f} minutes"
    return f"{total} ({', '.join(parts)})" if len(parts) > 1 else total
