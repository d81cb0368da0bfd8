"""Owns what is remembered of one HTTP request while it is answered, for the access log and the clocks; never its words."""

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
    """One request: who answered it, how many tokens it took, and when (perf_counter seconds) it came and first answered."""

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.perf_counter)
    model: str | None = None
    adapter: str | None = None
    version: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token: float | None = None

    def line(self) -> dict[str, Any]:
        """What the access log says of it, besides the HTTP part; nothing that is not known."""
        ttft = None if self.first_token is None else round(1000 * (self.first_token - self.started), 1)
        known = {
            "model": self.model,
            "adapter": self.adapter,
            "version": self.version,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "ttft_ms": ttft,
        }
        return {name: value for name, value in known.items() if value is not None}

    def attach(self, scope: Any) -> None:
        """Make it findable from the request's handler."""
        scope.setdefault("state", {})[_KEY] = self


def trace_of(request: Request[Any, Any, Any]) -> Trace:
    """The request's trace; a fresh one where nothing around the application made it."""
    trace = request.scope.get("state", {}).get(_KEY)
    return trace if isinstance(trace, Trace) else Trace()
