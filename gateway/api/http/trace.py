"""What the access log, the timings and a trace's spans need to know about one HTTP request. It holds no prompts or
answers, unless prompts are to be logged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from litestar import Request

from tunery.gateway.engine.messages import Timings
from tunery.plugins.runtime.unique_id import unique_id

__all__ = ["ActiveSpan", "Trace", "Tracer", "trace_of"]

_KEY = "trace"


class ActiveSpan(Protocol):
    """The span of a request. One that is not `recorded` is not exported: its caller, or the ratio, decided so."""

    @property
    def trace_id(self) -> str:
        """In hexadecimal."""

    @property
    def recorded(self) -> bool:
        """Whether it is exported."""

    def traceparent(self) -> str:
        """The W3C header that names this span."""

    def end(self, trace: Trace, *, method: str, route: str, status: int) -> None:
        """End it with what is known of the request. Never raises and never waits."""


class Tracer(Protocol):
    """Makes the spans of requests."""

    def begin(self, headers: Mapping[str, str]) -> ActiveSpan:
        """The span of a request, a child of the one that its headers name."""


@dataclass
class Trace:
    """One request: who sent it, what answered it, its tokens, and when (perf_counter seconds) it arrived, was handed to
    the engine, and got its first and latest token.

    `options` are the fields of the body that a span shows, `timings` what the engine says of its first part.
    """

    request_id: str = field(default_factory=unique_id)
    started: float = field(default_factory=time.perf_counter)
    span: ActiveSpan | None = None
    tenant: str | None = None
    key: str | None = None
    model: str | None = None
    adapter: str | None = None
    version: int | None = None
    digest: str | None = None
    fingerprint: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    prompt: str | None = None
    handed: float | None = None
    first_token: float | None = None
    latest_token: float | None = None
    timings: Timings | None = None
    options: object = None

    def note_sender(self, *, tenant: str, key: str | None) -> None:
        """Note who sent the request: a tenant, with the key of that id."""
        self.tenant, self.key = tenant, key

    def note_handed(self) -> None:
        """Note that the engine has the request, or the first of its choices."""
        self.handed = self.handed or time.perf_counter()

    def note_token(self, now: float) -> None:
        """Note that the engine has answered with a token, or a vector, at `now`."""
        self.first_token = self.first_token or now
        self.latest_token = now

    def overhead(self, now: float, *, stream: bool = False) -> float:
        """Seconds up to `now` that were not the engine's: all before the request was handed to it, and those after its
        latest token, which a `stream` does not know when it starts."""
        if self.handed is None:
            return now - self.started
        after = 0.0 if stream else now - (self.latest_token or now)
        return self.handed - self.started + after

    def line(self) -> dict[str, Any]:
        """The fields that an access log line has beside the HTTP ones; those without a value are left out."""
        ttft = None if self.first_token is None else _milliseconds(self.first_token - self.started)
        now = time.perf_counter()
        fields = {
            "trace_id": self.span.trace_id if self.span is not None else None,
            "tenant": self.tenant,
            "key": self.key,
            "model": self.model,
            "adapter": self.adapter,
            "version": self.version,
            "digest": self.digest,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
            "finish_reason": self.finish_reason,
            "error": self.error,
            "ttft_ms": ttft,
            "overhead_ms": _milliseconds(self.overhead(now)),
            "duration_ms": _milliseconds(now - self.started),
            "prompt": self.prompt,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def attach(self, scope: Any) -> None:
        """Store this trace where `trace_of` finds it."""
        scope.setdefault("state", {})[_KEY] = self


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 1)


def trace_of(request: Request[Any, Any, Any]) -> Trace:
    """The request's trace, or a new one if the middleware did not run."""
    trace = request.scope.get("state", {}).get(_KEY)
    return trace if isinstance(trace, Trace) else Trace()
