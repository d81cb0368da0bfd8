"""Owns what happens around every request: an id, the count by route and status, and the access log. No prompts, ever."""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from tunery.gateway.api.state import Gateway

__all__ = ["Around"]


class Around:
    """ASGI around the whole application, so that unknown routes and errors are counted too."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if 0 < len(given) <= 128 and given.isprintable() else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started, seen = time.perf_counter(), {"status": 0}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode("latin-1"))]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            route = _route(scope)
            self._gateway.metrics.http.labels(route, str(seen["status"] or 499)).inc()
            if self._gateway.settings.access_log:
                _log(scope, route, request_id, seen["status"], time.perf_counter() - started)


def _route(scope: Any) -> str:
    """The route's template, never what the client wrote."""
    return str(scope.get("path_template") or "unknown")


def _log(scope: Any, route: str, request_id: str, status: int, seconds: float) -> None:
    line = {
        "request_id": request_id,
        "method": scope["method"],
        "route": route,
        "status": status,
        "duration_ms": round(1000 * seconds, 1),
    }
    sys.stderr.write(msgspec.json.encode(line).decode() + "\n")
