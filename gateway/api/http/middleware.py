"""Owns what happens around every request: an id, the count by route and status, and the access log. No prompts, ever."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
import uuid
from typing import Any

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from tunery.gateway.api.http.body_memory import BodyMemory
from tunery.gateway.api.http.connection import Connection
from tunery.gateway.api.http.trace import Trace
from tunery.gateway.api.state import Gateway
from tunery.gateway.metrics import LEFT, UNKNOWN

__all__ = ["Around"]

UNREAD = frozenset({403, 413, 415})
"""Statuses of requests whose body has not been read."""
DISCARD_BYTES = 256 * 2**20
DISCARD_SECONDS = 10.0
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Around:
    """ASGI around the whole application, so that unknown routes and errors are counted too."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway
        self._bodies = BodyMemory()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        trace, seen, method = Trace(_request_id(scope)), {"status": 0}, scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}
        trace.attach(scope)
        settings = self._gateway.settings
        connection = Connection(
            receive, send, memory=self._bodies, read_seconds=settings.read_seconds, write_seconds=settings.write_seconds
        )
        connection.attach(scope)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                if message["status"] in UNREAD:
                    await _discard(receive)
                message["headers"] = [*message["headers"], (b"x-request-id", trace.request_id.encode())]
            elif method == "HEAD" and message["type"] == "http.response.body":
                message["body"] = b""
            await connection.send(message)

        try:
            async with connection:
                await self._app(scope, connection.receive, sending)
        except asyncio.CancelledError:
            # The client has left and the work for it was cancelled: nobody is to be answered, and it is nobody's error.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
        finally:
            # 499 is nginx's word for a client that left before there was an answer.
            status, route = seen["status"] or int(LEFT), _route(scope)
            self._gateway.metrics.http.labels(route, str(status)).inc()
            if self._gateway.settings.access_log:
                _log(method, route, status, trace)


async def _discard(receive: Receive) -> None:
    """Take in the rest of a body that is refused: a client that is still sending would see a broken connection, not the answer."""
    taken = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while taken < DISCARD_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                taken += len(message.get("body") or b"")


def _request_id(scope: Any) -> str:
    """The client's own id where it is fit for a header and a log line, else a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _route(scope: Any) -> str:
    """The route's template, never what the client wrote."""
    return str(scope.get("path_template") or UNKNOWN)


def _log(method: str, route: str, status: int, trace: Trace) -> None:
    line = {
        "time": round(time.time(), 3),
        "request_id": trace.request_id,
        "method": method,
        "route": route,
        "status": status,
        **trace.line(),
        "duration_ms": round(1000 * (time.perf_counter() - trace.started), 1),
    }
    sys.stderr.write(msgspec.json.encode(line).decode() + "\n")
