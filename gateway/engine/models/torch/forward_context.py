"""The batch that a TorchModel is running, for its layers: transformers' forward has no place to pass it through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tunery.gateway.engine.scheduling.forward_batch import Segment

__all__ = ["ForwardContext", "SlotSpan"]


@dataclass(frozen=True, slots=True)
class SlotSpan:
    """Rows `start:end` are the newest tokens of one sequence, whose context is cached at `slots`, int64 [context]."""

    start: int
    end: int
    slots: torch.Tensor

    @property
    def context(self) -> int:
        """Tokens the last row of the span attends to, itself included."""
        return self.slots.shape[0]


@dataclass(slots=True)
class ForwardContext:
    """The running batch: each row's slot in the KV cache, int64 [T], its sequences, and the adapters of its rows.

    `head_input` [1, R, hidden] is the last input of the output head, and `norm_input` [1, T, hidden] that of the last
    norm.
    """

    slots: torch.Tensor | None = None
    spans: tuple[SlotSpan, ...] = ()
    segments: tuple[Segment, ...] = ()
    output_segments: tuple[Segment, ...] = ()
    head_input: torch.Tensor | None = field(default=None)
    norm_input: torch.Tensor | None = field(default=None)

    def clear(self) -> None:
        """Forget the batch, which has ended."""
        self.slots = self.head_input = self.norm_input = None
        self.spans = self.segments = self.output_segments = ()
