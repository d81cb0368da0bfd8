"""One HTTP request's connection: limits on how long a client may take to send its body and to read its answer, the one watch
for its leaving, and what has to be closed when the request ends, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from litestar import Request
from litestar.exceptions import HTTPException
from litestar.types import HTTPReceiveMessage, Message, Receive, Send

from tunery.gateway.api.http.body_memory import BodyMemory

__all__ = ["Connection", "connection_of"]

SLOWEST_BODY = 32 * 1024
"""Bytes per second that a body may come at, once it has had its first `read_seconds`."""

_KEY = "connection"


class Connection:
    """Wraps ASGI's `receive` and `send` of one request; an async context manager that closes what was registered with it.

    A body that is not complete after `read_seconds`, and a second more for each SLOWEST_BODY bytes that have come, ends with 408.
    A client that makes its answer wait for `write_seconds` in all counts as gone: what is sent from then on is dropped, and
    `receive` says `http.disconnect`. A body that breaks off may also be one that is badly framed, whose sender is still there to be told.
    """

    def __init__(
        self, receive: Receive, send: Send, *, memory: BodyMemory, read_seconds: float, write_seconds: float
    ) -> None:
        self._receive, self._send, self._memory = receive, send, memory
        self._read_seconds, self._patience = read_seconds, write_seconds
        self._began, self._size = time.monotonic(), 0
        self._body_read = self._broken_off = False
        self._gone = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._closing = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close everything, last registered first."""
        if self._watch is not None:
            self._watch.cancel()
        try:
            await self._closing.aclose()
        finally:
            self._memory.release(self._size)

    def attach(self, scope: Any) -> None:
        """Make it findable from the request's handler."""
        scope.setdefault("state", {})[_KEY] = self

    def on_end(self, close: Callable[[], Awaitable[Any]]) -> None:
        """Await `close()` when the request has ended."""
        self._closing.push_async_callback(close)

    async def gone(self) -> None:
        """Wait until the client has left, or counts as gone; call it when the body has been read."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._see_off(), name="disconnect")
        await self._gone.wait()

    async def receive(self) -> HTTPReceiveMessage:
        """ASGI's receive. The server wakes only one of several waiters, so after the body all of them share one watch."""
        if self._body_read:
            await self.gone()
            return {"type": "http.disconnect"}
        message = await self._next()
        if message["type"] == "http.request":
            size = len(message.get("body") or b"")
            self._memory.take(size)
            self._size += size
            self._body_read = not message.get("more_body")
        else:
            self._body_read = self._broken_off = True
            self._gone.set()
        return message

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        if self._gone.is_set() and not self._broken_off and message["type"] == "http.response.body":
            return
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._patience):
                await self._send(message)
        except TimeoutError:
            self._gone.set()
        self._patience = max(0.0, self._patience - (time.monotonic() - started))

    async def _next(self) -> HTTPReceiveMessage:
        left = self._began + self._read_seconds + self._size / SLOWEST_BODY - time.monotonic()
        try:
            async with asyncio.timeout(left):
                return cast("HTTPReceiveMessage", await self._receive())
        except TimeoutError:
            self._body_read = True
            raise HTTPException(
                f"the body did not come in time: {self._size:,} bytes in {time.monotonic() - self._began:.0f} s; send it again",
                status_code=408,
            ) from None

    async def _see_off(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            """The body has been read; nothing else can come."""
        self._gone.set()


def connection_of(request: Request[Any, Any, Any]) -> Connection:
    """The request's connection; one without limits where nothing around the application made it."""
    connection = request.scope.get("state", {}).get(_KEY)
    if isinstance(connection, Connection):
        return connection
    return Connection(request.receive, request.send, memory=BodyMemory(), read_seconds=1e9, write_seconds=1e9)
