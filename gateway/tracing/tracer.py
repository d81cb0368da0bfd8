"""Makes the span of each request, and those of the stages below it from the times that the engine reports.

Stages become spans when their request has ended, with the times at which they happened, so a stream costs no more than
any other request. Whether a request is recorded is for the caller's span to say; without one, for a ratio.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace import Tracer as OtelTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tunery.gateway.api.http.trace import Trace
from tunery.gateway.tracing.attributes import attributes_of, name_of
from tunery.gateway.tracing.export import CountSpans, counted_processor

__all__ = ["RequestSpan", "SpanTracer"]

log = logging.getLogger("tunery.gateway")

CLOSE_SECONDS = 5.0
"""How long the last spans may take to be exported."""
UNTRACED = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Routes that are asked every few seconds and say nothing of use."""

_W3C = TraceContextTextMapPropagator()


class SpanTracer:
    """See api.http.trace.Tracer.

    `ratio` None leaves the choice to OpenTelemetry's variables, `named` says that the service's name is among those.
    """

    def __init__(self, exporter: SpanExporter, *, ratio: float | None, named: bool, count: CountSpans) -> None:
        own = {"service.version": version("tunery")} | ({} if named else {"service.name": "tunery"})
        self._provider = TracerProvider(
            sampler=None if ratio is None else ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create(own),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(counted_processor(exporter, count))
        self._tracer = self._provider.get_tracer("tunery")

    def begin(self, headers: Mapping[str, str]) -> RequestSpan:
        """See Tracer."""
        span = self._tracer.start_span("request", context=_W3C.extract(headers), kind=SpanKind.SERVER)
        return RequestSpan(self._tracer, span)

    async def close(self) -> None:
        """Export what is left, for a bounded time."""
        closing = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_SECONDS)


class RequestSpan:
    """See api.http.trace.ActiveSpan."""

    def __init__(self, tracer: OtelTracer, span: Span) -> None:
        self._tracer, self._span = tracer, span
        # Times are measured with perf_counter, and so stay in order when the wall clock is set.
        self._zero = time.time_ns() - int(time.perf_counter() * 1e9)

    @property
    def trace_id(self) -> str:
        """See ActiveSpan."""
        return format_trace_id(self._span.get_span_context().trace_id)

    @property
    def recorded(self) -> bool:
        """See ActiveSpan."""
        return self._span.is_recording()

    def traceparent(self) -> str:
        """See ActiveSpan."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(self._span))
        return carrier["traceparent"]

    def end(self, trace: Trace, *, method: str, route: str, status: int) -> None:
        """See ActiveSpan."""
        if not self.recorded or route in UNTRACED:
            return
        try:
            now = time.perf_counter()
            self._describe(trace, method, route, status)
            for name, start, end in stages(trace, now):
                self._add(name, start, end)
            self._span.end(self._at(now))
        except Exception:
            log.exception("the span of request %s could not be made", trace.request_id)

    def _describe(self, trace: Trace, method: str, route: str, status: int) -> None:
        self._span.update_name(name_of(trace, method=method, route=route))
        self._span.set_attributes(attributes_of(trace, method=method, route=route, status=status))
        if status >= 500 or (trace.error is not None and status < 400):
            self._span.set_status(Status(StatusCode.ERROR))

    def _add(self, name: str, start: float, end: float) -> None:
        """A span of a stage, by perf_counter's times."""
        below = set_span_in_context(self._span)
        self._tracer.start_span(name, context=below, start_time=self._at(start)).end(self._at(end))

    def _at(self, moment: float) -> int:
        """Nanoseconds since 1970."""
        return self._zero + int(moment * 1e9)


def stages(trace: Trace, now: float) -> Iterator[tuple[str, float, float]]:
    """The stages of an answer as name, start and end; of several choices, those of the one that began first.

    An adapter is loaded while its request is in the queue. A request without a token was in the queue all the time, as
    far as one knows.
    """
    if trace.handed is None:
        return
    times, begun = trace.timings, trace.handed
    if times is None:
        yield "queue", begun, now
        return
    started, prefilled = min(begun + times.started, now), min(begun + times.prefilled, now)
    yield "queue", begun, started
    if times.loaded is not None:
        yield "adapter load", begun, min(begun + times.loaded, started)
    yield "prefill", started, prefilled
    if trace.completion_tokens and trace.latest_token is not None:
        yield "decode", prefilled, max(trace.latest_token, prefilled)
