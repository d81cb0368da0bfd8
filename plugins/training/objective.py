"""Owns what a step minimises: a sum over rows, divided by how many terms it has; supervised by default, a trainer's own otherwise.

Because the sum is divided by the whole step's terms, how a step is cut into micro-batches changes nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from tunery.plugins.training.batches import Batch, Example
from tunery.plugins.training.loss import summed_loss

__all__ = ["Objective", "Supervised"]


class Objective(Protocol):
    """What the loop minimises."""

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The sum of a micro-batch's terms, float32 []."""

    def terms(self, rows: Sequence[Example]) -> int:
        """How many terms `rows` have."""

    def ceiling(self, vocabulary: int, first: float) -> float:
        """A step's mean loss above which a run has exploded that began with `first`."""


class Supervised:
    """Cross-entropy of the trained tokens, in nats a token."""

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Negative log-likelihood of every trained token."""
        return summed_loss(model, batch)

    def terms(self, rows: Sequence[Example]) -> int:
        """Trained tokens."""
        return sum(example.targets for example in rows)

    def ceiling(self, vocabulary: int, first: float) -> float:
        """Worse than guessing every token with equal chance, and far worse than at the start."""
        return max(math.log(max(vocabulary, 2)), 2 * first + 2)
