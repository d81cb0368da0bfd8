"""The objective of a training step: a sum of terms over its rows, divided by their number;
supervised unless a trainer has its own.

Because the divisor is the number of terms of the whole step, the size of micro-batches changes nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.training.examples.batches import Batch, Example
from tunery.plugins.training.objectives.loss import mean_scores, row_scores
from tunery.registry.losses import NATS

__all__ = ["Objective", "StepLoss", "Supervised", "objective_of", "step_loss", "unit_of"]


@dataclass(frozen=True)
class StepLoss:
    """The sum of a micro-batch's terms, float32 []; and in how many the model finds the target the likeliest, int64 [],
    None where the terms are not tokens."""

    total: torch.Tensor
    correct: torch.Tensor | None = None


class Objective(Protocol):
    """What the loop minimises.

    `relative` says that the loss is relative to the model before the first step; that model is then the baseline,
    otherwise the base is. `unit` is the unit of the loss, as shown beside it, and may be missing.
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
        """Called once with the untrained model and all rows, first the training rows, then the held-out rows.

        What must be the same after a resume is stored at `path`. Draws no random numbers, and
        leaves the model as it was.
        """

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor | StepLoss:
        """The sum of a micro-batch's terms, float32 []; where the terms are tokens, with the correct ones counted."""

    def terms(self, rows: Sequence[Example]) -> int:
        """The number of terms of `rows`."""

    def ceiling(self, vocabulary: int, first: float) -> float:
        """The mean loss of a step above which a run whose first step had the loss `first` counts as exploded."""

    def evaluate(
        self, model: nn.Module, rows: Sequence[Example], *, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, float]:
        """Means over the terms of `rows`, by name; `loss` is one of them, and the weights with the lowest are kept."""


def objective_of(trainer: object, parameters: TrainingParameters) -> Objective:
    """A trainer's own objective, or the supervised one."""
    make: Callable[[TrainingParameters], Objective] | None = getattr(trainer, "objective", None)
    return make(parameters) if make else Supervised()


def step_loss(objective: Objective, model: nn.Module, batch: Batch) -> StepLoss:
    """An objective's loss of a micro-batch."""
    loss = objective.loss(model, batch)
    return loss if isinstance(loss, StepLoss) else StepLoss(loss)


def unit_of(objective: Objective) -> str:
    """The unit of an objective's loss."""
    return getattr(objective, "unit", "") or "loss of the trainer's own"


class Supervised:
    """Cross-entropy of the trained tokens, in nats per token."""

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
        """Do nothing: this loss needs no reference."""

    def loss(self, model: nn.Module, batch: Batch) -> StepLoss:
        """The negative log-likelihood of every trained token, summed."""
        scores = row_scores(model, batch)
        return StepLoss(scores.nats.sum(), scores.correct.sum())

    def terms(self, rows: Sequence[Example]) -> int:
        """The number of trained tokens."""
        return sum(example.targets for example in rows)

    def ceiling(self, vocabulary: int, first: float) -> float:
        """The loss of guessing all tokens with equal chance, or far above the first step's, whichever is higher."""
        return max(math.log(max(vocabulary, 2)), 2 * first + 2)

    def evaluate(
        self, model: nn.Module, rows: Sequence[Example], *, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, float]:
        """The `loss`, and the `token_accuracy`: the share of tokens that the model finds the likeliest."""
        loss, accuracy = mean_scores(model, rows, batch_size=batch_size, device=device, dtype=dtype)
        return {"loss": loss, "token_accuracy": accuracy}
