"""Hands spans to a thread that exports them: nothing waits for it, and spans that it cannot keep up with are dropped
and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

__all__ = ["CountSpans", "counted_processor"]

CountSpans = Callable[[Literal["exported", "dropped"], int], None]

MAX_QUEUE = 4096
"""Spans that may wait to be exported; also the environment's, in OTEL_BSP_MAX_QUEUE_SIZE, for fewer of them."""


class _CountedExporter(SpanExporter):
    """Counts what another exporter exports and what it fails to."""

    def __init__(self, exporter: SpanExporter, count: CountSpans) -> None:
        self._exporter, self._count = exporter, count
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See SpanExporter."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self.taken += len(spans)
            self._count("exported" if result is SpanExportResult.SUCCESS else "dropped", len(spans))
        return result

    def shutdown(self) -> None:
        """See SpanExporter."""
        self._exporter.shutdown()


class _CountedProcessor(BatchSpanProcessor):
    """Drops what finds the queue full before the queue does, which would drop the oldest and not count it."""

    def __init__(self, exporter: _CountedExporter, count: CountSpans) -> None:
        super().__init__(exporter, max_queue_size=MAX_QUEUE)
        self._exporter, self._count = exporter, count
        self._given = 0

    def on_end(self, span: ReadableSpan) -> None:
        """See SpanProcessor."""
        if self._given - self._exporter.taken >= MAX_QUEUE:
            self._count("dropped", 1)
            return
        self._given += 1
        super().on_end(span)


def counted_processor(exporter: SpanExporter, count: CountSpans) -> BatchSpanProcessor:
    """A processor whose thread exports spans; `count` is called with their number, from that thread too."""
    return _CountedProcessor(_CountedExporter(exporter, count), count)
