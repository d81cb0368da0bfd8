"""Owns the description of one forward pass; refuses to know about requests or queues.

All tokens of a step lie in one row of length T, grouped by adapter so that each adapter's tokens are one slice. Whatever
needs to know which rows belong to whom (attention, adapters) reads the current step from the `Board` the model was fitted with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tunery.gateway.engine.adapter import LoadedAdapter

__all__ = ["Board", "Segment", "Span", "Step"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `start:end` run through `adapter`; rows in no segment are the bare base's."""

    start: int
    end: int
    adapter: LoadedAdapter


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `start:end` are the newest tokens of one sequence, whose whole context lies in the cache at `slots`.

    `slots` is int64 [context], the last `end - start` of which this step writes.
    """

    start: int
    end: int
    slots: torch.Tensor

    @property
    def context(self) -> int:
        """Tokens the last row of the span attends to, itself included."""
        return self.slots.shape[0]


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass over T rows, R of which produce logits.

    `tokens` and `positions` are int64 [1, T]; `slots` int64 [T] is where each row's key and value go (padding rows go to
    slot 0, which no sequence owns); `outputs` int64 [R] are the rows to compute logits for; `segments` index rows,
    `output_segments` index outputs.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    spans: tuple[Span, ...]
    segments: tuple[Segment, ...]
    outputs: torch.Tensor
    output_segments: tuple[Segment, ...]


@dataclass(slots=True)
class Board:
    """Where the model's layers look up the step that is running."""

    step: Step | None = field(default=None)
