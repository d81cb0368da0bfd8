"""Owns where the layers of a TorchModel look up the step that is running; refuses to change it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tunery.gateway.engine.scheduling.forward_batch import Segment

__all__ = ["ForwardContext", "SlotSpan"]


@dataclass(frozen=True, slots=True)
class SlotSpan:
    """Rows `start:end` are the newest tokens of one sequence, whose whole context lies in the cache at `slots`, int64 [context]."""

    start: int
    end: int
    slots: torch.Tensor

    @property
    def context(self) -> int:
        """Tokens the last row of the span attends to, itself included."""
        return self.slots.shape[0]


@dataclass(slots=True)
class ForwardContext:
    """The running step: where each row's key and value go (`slots` int64 [T]), who attends to what, and which rows are whose.

    `head_input` is what the output head was given last, [1, R, hidden], and `norm_input` what the last norm was given, [1, T, hidden].
    """

    slots: torch.Tensor | None = None
    spans: tuple[SlotSpan, ...] = ()
    segments: tuple[Segment, ...] = ()
    output_segments: tuple[Segment, ...] = ()
    head_input: torch.Tensor | None = field(default=None)
    norm_input: torch.Tensor | None = field(default=None)

    def clear(self) -> None:
        """Nothing runs."""
        self.slots = self.head_input = self.norm_input = None
        self.spans = self.segments = self.output_segments = ()
