"""Owns what a step minimises: a sum over rows, divided by how many terms it has; supervised by default, a trainer's own otherwise.

A trainer has its own by a method `objective(parameters)`.

Because the sum is divided by the whole step's terms, how a step is cut into micro-batches changes nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.training.examples.batches import Batch, Example
from tunery.plugins.training.objectives.loss import mean_loss, summed_loss
from tunery.registry.losses import NATS

__all__ = ["Objective", "Supervised", "objective_of", "unit_of"]


class Objective(Protocol):
    """What the loop minimises.

    `relative` says that the loss is taken against the model as it was before the first step; that model is then the baseline, and
    the base itself otherwise. `unit` is what the loss is in, as it is shown beside it; it may be left out.
    """

    relative: bool
    unit: str

    def prepare(
        self,
        model: nn.Module,
        rows: Sequence[Sequence[Example]],
        *,
        path: Path,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Called once before anything is tried, with the untrained model and all rows: training ones, then held-out ones. What must
        be the same after a resume is kept at `path`. It draws no random numbers and leaves the model as it was."""

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The sum of a micro-batch's terms, float32 []."""

    def terms(self, rows: Sequence[Example]) -> int:
        """How many terms `rows` have."""

    def ceiling(self, vocabulary: int, first: float) -> float:
        """A step's mean loss above which a run has exploded that began with `first`."""

    def evaluate(
        self, model: nn.Module, rows: Sequence[Example], *, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, float]:
        """Figures of `rows` by name, means over their terms: `loss` at least, which the best weights have least of."""


def objective_of(trainer: object, parameters: TrainingParameters) -> Objective:
    """A trainer's own objective, or the supervised one."""
    make: Callable[[TrainingParameters], Objective] | None = getattr(trainer, "objective", None)
    return make(parameters) if make else Supervised()


def unit_of(objective: Objective) -> str:
    """What an objective's loss is in."""
    return getattr(objective, "unit", "") or "loss of the trainer's own"


class Supervised:
    """Cross-entropy of the trained tokens, in nats a token."""

    relative = False
    unit = NATS

    def prepare(
        self,
        model: nn.Module,
        rows: Sequence[Sequence[Example]],
        *,
        path: Path,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Nothing."""

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Negative log-likelihood of every trained token."""
        return summed_loss(model, batch)

    def terms(self, rows: Sequence[Example]) -> int:
        """Trained tokens."""
        return sum(example.targets for example in rows)

    def ceiling(self, vocabulary: int, first: float) -> float:
        """Worse than guessing every token with equal chance, and far worse than at the start."""
        return max(math.log(max(vocabulary, 2)), 2 * first + 2)

    def evaluate(
        self, model: nn.Module, rows: Sequence[Example], *, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, float]:
        """The loss alone."""
        return {"loss": mean_loss(model, rows, batch_size=batch_size, device=device, dtype=dtype)}
