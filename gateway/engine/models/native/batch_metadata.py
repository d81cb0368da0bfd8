"""A batch as the native kernels read it: each row's position and slot, its sequence, and its adapter."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import cast

import numpy as np

from tunery.gateway.engine.models.native.adapter import NativeAdapter
from tunery.gateway.engine.models.native.kernels import SegmentStruct, SpanStruct
from tunery.gateway.engine.scheduling.forward_batch import ForwardBatch, Segment

__all__ = ["BatchMetadata", "LoraSegments", "OverrideSegment"]


class LoraSegments:
    """Which rows run through which adapter: `structs` for the kernels, `overrides` for what adapted.py applies.

    `rows` counts the segments' rows, those of a composition once for each of its adapters; `max_rank` is the largest
    rank of all.
    """

    __slots__ = ("max_rank", "overrides", "rows", "structs")

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self.structs = (SegmentStruct * len(segments))()
        self.rows = self.max_rank = 0
        self.overrides: list[OverrideSegment] = []
        for struct, segment in zip(self.structs, segments, strict=True):
            adapter = cast(NativeAdapter, segment.adapter)
            struct.start, struct.end, struct.weight = segment.start, segment.end, segment.weight
            struct.table = ctypes.addressof(adapter.lora_table)
            self.rows += segment.end - segment.start
            self.max_rank = max(self.max_rank, adapter.max_rank)
            if adapter.has_overrides:
                self.overrides.append(OverrideSegment(segment.start, segment.end, adapter, segment.weight))


@dataclass(frozen=True, slots=True)
class OverrideSegment:
    """Rows `start:end` of an adapter that replaces parameters of the base."""

    start: int
    end: int
    adapter: NativeAdapter
    weight: float

    @property
    def rows(self) -> slice:
        """Its rows of the batch."""
        return slice(self.start, self.end)

    @property
    def count(self) -> int:
        """How many rows it has."""
        return self.end - self.start

    def alone(self) -> LoraSegments:
        """The same rows as a batch of their own."""
        return LoraSegments((Segment(0, self.count, self.adapter, self.weight),))


class BatchMetadata:
    """What the kernels need to know about the `rows` tokens of a batch; it points into the batch's arrays."""

    __slots__ = ("_batch", "_positions", "_slots", "rows", "segments", "spans")

    def __init__(self, batch: ForwardBatch) -> None:
        for name, array in (("positions", batch.positions), ("slots", batch.slots)):
            if array.dtype != np.int64 or not array.flags.c_contiguous:
                raise ValueError(f"{name} must be contiguous int64, not {array.dtype}")
        self._batch = batch
        self._positions: int = batch.positions.ctypes.data
        self._slots: int = batch.slots.ctypes.data
        self.rows = len(batch.positions)
        self.segments = LoraSegments(batch.segments)
        self.spans = (SpanStruct * len(batch.spans))()
        for struct, span in zip(self.spans, batch.spans, strict=True):
            struct.start, struct.end, struct.length = span.start, span.end, span.length
            struct.pages = span.pages.ctypes.data

    def positions_address(self, row: int) -> int:
        """Where the positions of the tokens from `row` on lie, int64."""
        return self._positions + 8 * row

    def slots_address(self, row: int) -> int:
        """Where the slots in the KV cache of the tokens from `row` on lie, int64."""
        return self._slots + 8 * row
