"""What happens around every request: its id and span, its connection's limits, the headers that all responses have, the
count by route and status, and the access log.

The log contains no answers, and prompts only where that is asked for. The middleware is Litestar's own kind but wraps the whole application,
because Litestar runs registered middleware only for requests that match a route, and unknown routes are counted and
logged too.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Any, cast

from litestar.enums import HttpMethod, ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from tunery.gateway.api.http.body_memory import BodyMemory
from tunery.gateway.api.http.connection import Connection
from tunery.gateway.api.http.in_flight import RequestsInFlight
from tunery.gateway.api.http.response_headers import ResponseHeaders
from tunery.gateway.api.http.trace import Trace, Tracer
from tunery.gateway.metrics.recorder import DISCONNECTED, UNKNOWN_ROUTE, Metrics
from tunery.plugins.runtime.log_format import log_event
from tunery.plugins.runtime.unique_id import unique_id
from tunery.registry.configuration.settings import ServeSettings

__all__ = ["RequestMiddleware"]

BODY_UNREAD = frozenset({401, 403, 413, 415})
"""Statuses of requests that are refused before their body has been read."""
MAX_DISCARD_BYTES = 256 * 2**20
MAX_DISCARD_SECONDS = 10.0
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestMiddleware(ASGIMiddleware):
    """Wraps a whole application; see the module."""

    scopes = (ScopeType.HTTP,)

    def __init__(
        self,
        settings: ServeSettings,
        metrics: Metrics,
        *,
        in_flight: RequestsInFlight,
        leaving: Callable[[], bool],
        tracer: Tracer | None = None,
    ) -> None:
        self._settings, self._metrics, self._in_flight, self._tracer = settings, metrics, in_flight, tracer
        self._bodies = BodyMemory()
        self._headers = ResponseHeaders(tls=bool(settings.tls_cert), leaving=leaving)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Handle one request."""
        request = cast("HTTPScope", scope)  # `scopes` has no other kind
        trace, method = Trace(_request_id(request)), request["method"]
        if self._tracer is not None:
            trace.span = self._tracer.begin(_context(request))
        if method == "HEAD":
            request = {**request, "method": HttpMethod.GET}
        trace.attach(request)
        connection = Connection(
            receive,
            send,
            memory=self._bodies,
            read_seconds=self._settings.read_seconds,
            write_seconds=self._settings.write_seconds,
        )
        connection.attach(request)
        response = _ResponseSender(
            connection,
            receive,
            self._headers,
            trace,
            head=method == "HEAD",
            is_too_long=_declared_length(request) > MAX_DISCARD_BYTES,
        )
        try:
            with self._in_flight.hold():
                async with connection:
                    await next_app(request, connection.receive, response.send)
        except asyncio.CancelledError:
            # The client has disconnected and its work was cancelled: there is no one to answer, and it is not an error.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
        finally:
            # 499 is nginx's status for a client that disconnected before there was a response.
            self._finish(trace, method, _route(request), response.status or int(DISCONNECTED))

    def _finish(self, trace: Trace, method: str, route: str, status: int) -> None:
        """Count, trace and log a request that has ended."""
        self._metrics.count_response(route, status, trace.error)
        if trace.span is not None:
            trace.span.end(trace, method=method, route=route, status=status)
        if self._settings.access_log:
            http = {"request_id": trace.request_id, "method": method, "route": route, "status": status}
            log_event("tunery.access", {**http, **trace.line()})


class _ResponseSender:
    """Sends a response with the headers that all have, without a body for HEAD; `status` is 0 until it starts.

    A refused body is discarded first, unless it `is_too_long` for that: then the connection is closed.
    """

    def __init__(
        self,
        connection: Connection,
        receive: Receive,
        headers: ResponseHeaders,
        trace: Trace,
        *,
        head: bool,
        is_too_long: bool,
    ) -> None:
        self._connection, self._receive, self._headers, self._trace = connection, receive, headers, trace
        self._head, self._is_too_long = head, is_too_long
        self.status = 0

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status in BODY_UNREAD:
                if self._is_too_long:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
                else:
                    await _discard_body(self._receive)
            message["headers"] = self._headers.add(message["headers"], self._trace)
        elif self._head and message["type"] == "http.response.body":
            message["body"] = b""
        await self._connection.send(message)


async def _discard_body(receive: Receive) -> None:
    """Read the rest of a refused body; a client still sending would see a broken connection instead of the response."""
    discarded = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MAX_DISCARD_SECONDS):
            while discarded < MAX_DISCARD_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                discarded += len(message.get("body") or b"")


def _request_id(scope: Any) -> str:
    """The client's own id if it is fit for a header and a log line, else a new one."""
    client_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return client_id if _REQUEST_ID.fullmatch(client_id) else unique_id()


def _context(scope: Any) -> dict[str, str]:
    """The W3C headers that name the span of the caller."""
    return {
        name.decode(): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"traceparent", b"tracestate")
    }


def _declared_length(scope: Any) -> int:
    """Bytes of the body as its header says; 0 where there is none or it is no number."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    return int(length[:19]) if length.isdigit() else 0


def _route(scope: Any) -> str:
    """The route's template, never the path that the client wrote."""
    return str(scope.get("path_template") or UNKNOWN_ROUTE)
