"""What an answer needs to know of a request besides its decoded body, whether it came over HTTP or from a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from litestar import Request

from tunery.gateway.api.http.authentication import principal_of
from tunery.gateway.api.http.trace import Trace, trace_of
from tunery.gateway.tenancy.principal import Principal

__all__ = ["Call", "call_of"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an inference endpoint.

    `body` are the bytes of the JSON, `principal` is who asks, `adapter` is the one that a header names. A call in the `background` (a batch's)
    runs on what the others leave: it counts as no request in flight, and its latencies are not measured.
    """

    body: bytes
    trace: Trace
    principal: Principal
    adapter: str | None = None
    background: bool = False


async def call_of(request: Request[Any, Any, Any]) -> Call:
    """The call that an HTTP request makes."""
    return Call(await request.body(), trace_of(request), principal_of(request), request.headers.get("x-tunery-adapter"))
