"""Owns the description of one forward pass; refuses to know about requests or queues.

All tokens of a step lie in one row of length T, sorted by adapter, so that each adapter's tokens are one slice. Models take the
description as it is; nothing in it is a tensor, so that a step can be laid out while the device still works.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tunery.gateway.engine.scheduling.sequence import Sequence

__all__ = ["OutputRow", "ScheduledTokens", "Segment", "Span", "ForwardBatch", "build_forward_batch"]


@dataclass(frozen=True, slots=True)
class ScheduledTokens:
    """`count` more tokens of a running sequence go through the model in the next step."""

    sequence: Sequence
    count: int

    @property
    def completes(self) -> bool:
        """Whether the step reaches the sequence's last known token, so that the next one can be chosen."""
        return self.sequence.left == self.count


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `start:end` run through `adapter`, of the model's own kind, at `weight`; rows in no segment are the bare base's.

    A composition has several segments over the same rows, one after the other.
    """

    start: int
    end: int
    adapter: Any
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `start:end` are the newest tokens of one sequence whose `length` tokens, them included, lie in `pages`."""

    start: int
    end: int
    length: int
    pages: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class OutputRow:
    """What is made of output row `row` (of T): the logits after token `position` of the sequence, or its hidden state.

    `sample` rows choose the next token; the others with logits score the prompt's token at `position + 1`.
    """

    sequence: Sequence
    row: int
    position: int
    sample: bool


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One forward pass over T rows.

    `tokens`, `positions` and `slots` (where each row's key and value go) are int64 [T]. `logits` are the rows whose logits are
    wanted and `hidden` those whose final hidden states are, in this order the R outputs; `segments` index rows,
    `output_segments` index the logits' rows.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]
    spans: tuple[Span, ...]
    segments: tuple[Segment, ...]
    logits: tuple[OutputRow, ...]
    hidden: tuple[OutputRow, ...]
    output_segments: tuple[Segment, ...]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows of the outputs, int64 [R]."""
        return np.array([output.row for output in (*self.logits, *self.hidden)], dtype=np.int64)


def build_forward_batch(scheduled: list[ScheduledTokens]) -> ForwardBatch:
    """The step over `scheduled`, which is sorted by digest."""
    tokens: list[int] = []
    spans: list[Span] = []
    positions, slots = [], []
    logits: list[OutputRow] = []
    hidden: list[OutputRow] = []
    for item in scheduled:
        sequence, start = item.sequence, len(tokens)
        begin, end = sequence.computed, sequence.computed + item.count
        pages = np.array(sequence.pages, dtype=np.int32)
        own = np.arange(begin, end, dtype=np.int64)
        tokens += sequence.tokens[begin:end]
        positions.append(own)
        slots.append(pages[own // PAGE_SIZE].astype(np.int64) * PAGE_SIZE + own % PAGE_SIZE)
        spans.append(Span(start, len(tokens), end, pages))
        outputs = hidden if sequence.pooling else logits
        outputs += _outputs(item, start, begin, end)
    return ForwardBatch(
        tokens=np.array(tokens, dtype=np.int64),
        positions=np.concatenate(positions),
        slots=np.concatenate(slots),
        spans=tuple(spans),
        segments=_segments((item.sequence, item.count) for item in scheduled),
        logits=tuple(logits),
        hidden=tuple(hidden),
        output_segments=_segments((output.sequence, 1) for output in logits),
    )


def _outputs(item: ScheduledTokens, start: int, begin: int, end: int) -> list[OutputRow]:
    """The rows of one sequence that something is made of."""
    sequence = item.sequence
    if sequence.pooling == "mean":
        wanted: Iterable[int] = range(begin, end)
    elif sequence.sampling.prompt_logprobs is not None:
        wanted = range(max(begin, len(sequence.scores)), min(end, sequence.prompt_length - 1))
    else:
        wanted = ()
    rows = [OutputRow(sequence, start + position - begin, position, sample=False) for position in wanted]
    if item.completes and sequence.pooling != "mean":
        rows.append(OutputRow(sequence, start + item.count - 1, end - 1, sample=True))
    return rows


def _segments(rows: Iterable[tuple[Sequence, int]]) -> tuple[Segment, ...]:
    """Merge neighbours with the same adapters into segments."""
    runs: list[tuple[Sequence, int, int]] = []
    at = 0
    for sequence, count in rows:
        if runs and runs[-1][0].digest == sequence.digest:
            runs[-1] = (runs[-1][0], runs[-1][1], at + count)
        else:
            runs.append((sequence, at, at + count))
        at += count
    return tuple(
        Segment(start, end, adapter, weight)
        for sequence, start, end in runs
        for adapter, weight in sequence.adapters
        if end > start
    )
