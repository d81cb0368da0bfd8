"""Owns a step as the native kernels read it; refuses to know what is computed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import cast

from tunery.gateway.engine.models.native.kernels import SegmentRow, SpanRow
from tunery.gateway.engine.models.native.packed_adapter import PackedAdapter
from tunery.gateway.engine.scheduling.forward_batch import ForwardBatch, Segment

__all__ = ["Segments", "Special", "spans_of"]


class Segments:
    """A step's segments as the kernels read them, and those that need more than the kernels."""

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self.array = (SegmentRow * len(segments))()
        self.places = self.ranks = 0
        self.special: list[Special] = []
        for row, segment in zip(self.array, segments, strict=True):
            adapter = cast(PackedAdapter, segment.adapter)
            row.start, row.end, row.weight = segment.start, segment.end, segment.weight
            row.table = ctypes.addressof(adapter.table)
            self.places += segment.end - segment.start
            self.ranks = max(self.ranks, adapter.ranks)
            if adapter.special:
                self.special.append(Special(segment.start, segment.end, adapter, segment.weight))


@dataclass(frozen=True, slots=True)
class Special:
    """A segment whose adapter needs more than the kernels."""

    start: int
    end: int
    adapter: PackedAdapter
    weight: float

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.start, self.end)

    @property
    def count(self) -> int:
        """How many rows it has."""
        return self.end - self.start

    def alone(self) -> Segments:
        """The same rows as if they were all there is."""
        return Segments((Segment(0, self.count, self.adapter, self.weight),))


def spans_of(batch: ForwardBatch) -> ctypes.Array[SpanRow]:
    """The step's spans; they point into its page tables."""
    rows = (SpanRow * len(batch.spans))()
    for row, span in zip(rows, batch.spans, strict=True):
        row.start, row.end, row.length, row.pages = span.start, span.end, span.length, span.pages.ctypes.data
    return rows
