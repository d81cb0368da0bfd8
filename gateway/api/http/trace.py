"""What the access log and the timings need to know about one HTTP request. It never holds prompts or answers."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from litestar import Request

__all__ = ["Trace", "trace_of"]

_KEY = "trace"


@dataclass
class Trace:
    """One request: what answered it, its tokens, when (perf_counter seconds) it arrived and got its first token, and the code
    of the error that it was answered with."""

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.perf_counter)
    model: str | None = None
    adapter: str | None = None
    version: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token: float | None = None
    error: str | None = None

    def line(self) -> dict[str, Any]:
        """The fields that an access log line has beside the HTTP ones; those without a value are left out."""
        ttft = None if self.first_token is None else round(1000 * (self.first_token - self.started), 1)
        fields = {
            "model": self.model,
            "adapter": self.adapter,
            "version": self.version,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "ttft_ms": ttft,
            "error": self.error,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def attach(self, scope: Any) -> None:
        """Store this trace where `trace_of` finds it."""
        scope.setdefault("state", {})[_KEY] = self


def trace_of(request: Request[Any, Any, Any]) -> Trace:
    """The request's trace, or a new one if the middleware did not run."""
    trace = request.scope.get("state", {}).get(_KEY)
    return trace if isinstance(trace, Trace) else Trace()
