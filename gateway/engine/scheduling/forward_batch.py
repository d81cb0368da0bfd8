"""ForwardBatch: what one forward pass computes, as the scheduler describes it and every model reads it.

The tokens of all scheduled sequences form one dimension of length T, without padding, sorted by composition so that the
rows of each adapter are contiguous. Nothing here is a tensor, so that a batch can be built while the device still
computes.
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

__all__ = ["ForwardBatch", "OutputRow", "ScheduledTokens", "Segment", "Span", "build_forward_batch"]


@dataclass(frozen=True, slots=True)
class ScheduledTokens:
    """The next `count` uncomputed tokens of a running sequence: one in decode, a chunk of the prompt in prefill."""

    sequence: Sequence
    count: int

    @property
    def completes(self) -> bool:
        """Whether this reaches the sequence's last known token, so that the next one can be sampled."""
        return self.sequence.uncomputed == self.count


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `start:end` use `adapter` (what the model's `place_adapter` returned) with this weight.

    Rows in no segment use the base model alone; those of a composition are in one segment for each of its adapters.
    """

    start: int
    end: int
    adapter: Any
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `start:end` are the newest of a sequence's `length` tokens.

    `pages`, int32 [ceil(length / PAGE_SIZE)], is its page table (block table): where all its keys
    and values are in the KV cache.
    """

    start: int
    end: int
    length: int
    pages: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class OutputRow:
    """A row (of T) whose logits or final hidden state are wanted: the one of the sequence's token at `position`.

    With `sample`, its logits choose the next token; otherwise they give the log-probability of the prompt's token at
    `position + 1`.
    """

    sequence: Sequence
    row: int
    position: int
    sample: bool


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One forward pass over T tokens.

    `tokens`, `positions` and `slots` are int64 [T]; a row's key and value go to its slot, page * PAGE_SIZE + offset.
    `logits` are the rows whose logits are wanted, `hidden` those whose final hidden states are; in this order they are
    the R output rows. `segments` index the T rows, `output_segments` the rows of `logits`.
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
        """The indices (of T) of the output rows, int64 [R]."""
        return np.array([output.row for output in (*self.logits, *self.hidden)], dtype=np.int64)


def build_forward_batch(scheduled: list[ScheduledTokens]) -> ForwardBatch:
    """Describe the forward pass over `scheduled`, which is sorted by the sequences' digests."""
    tokens: list[int] = []
    spans: list[Span] = []
    positions, slots = [], []
    logits: list[OutputRow] = []
    hidden: list[OutputRow] = []
    for item in scheduled:
        sequence, start = item.sequence, len(tokens)
        begin, end = sequence.computed, sequence.computed + item.count
        pages = np.array(sequence.pages, dtype=np.int32)
        places = np.arange(begin, end, dtype=np.int64)
        tokens += sequence.tokens[begin:end]
        positions.append(places)
        slots.append(pages[places // PAGE_SIZE].astype(np.int64) * PAGE_SIZE + places % PAGE_SIZE)
        spans.append(Span(start, len(tokens), end, pages))
        outputs = hidden if sequence.pooling else logits
        outputs += _output_rows(item, start)
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


def _output_rows(item: ScheduledTokens, start: int) -> list[OutputRow]:
    """The output rows of one sequence, whose first scheduled token is row `start`."""
    sequence, begin, end = item.sequence, item.sequence.computed, item.sequence.computed + item.count
    if sequence.pooling == "mean":
        positions: Iterable[int] = range(begin, end)
    elif sequence.sampling.prompt_logprobs is not None:
        positions = range(max(begin, len(sequence.prompt_logprobs)), min(end, sequence.prompt_length - 1))
    else:
        positions = ()
    rows = [OutputRow(sequence, start + position - begin, position, sample=False) for position in positions]
    if item.completes and sequence.pooling != "mean":
        rows.append(OutputRow(sequence, start + item.count - 1, end - 1, sample=True))
    return rows


def _segments(rows: Iterable[tuple[Sequence, int]]) -> tuple[Segment, ...]:
    """Merge neighbouring rows, given as (sequence, count), that have the same composition into segments."""
    runs: list[tuple[Sequence, int, int]] = []
    row = 0
    for sequence, count in rows:
        if runs and runs[-1][0].digest == sequence.digest:
            runs[-1] = (runs[-1][0], runs[-1][1], row + count)
        else:
            runs.append((sequence, row, row + count))
        row += count
    return tuple(
        Segment(start, end, adapter, weight)
        for sequence, start, end in runs
        for adapter, weight in sequence.adapters
        if end > start
    )
