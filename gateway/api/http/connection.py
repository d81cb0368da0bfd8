"""One HTTP request's connection: time limits on the body and on the response, client disconnects, and clean-up at the
end.

Litestar has none of these limits, and the server wakes only one of several tasks that wait for a disconnect, so each
request has one watch that all of them share.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

from litestar import Request
from litestar.exceptions import HTTPException
from litestar.types import HTTPReceiveMessage, Message, Receive, Send

from tunery.gateway.api.http.body_memory import BodyMemory

__all__ = ["Connection", "cancel_on_disconnect", "connection_of"]

T = TypeVar("T")

MIN_BODY_RATE = 32 * 1024
"""Bytes per second that a body must arrive at after its first `read_seconds`."""

_KEY = "connection"


class Connection:
    """Wraps ASGI's `receive` and `send` of one request; an async context manager that closes what was registered with
    it.

    A body that is not complete after `read_seconds`, plus one second for each MIN_BODY_RATE bytes received, ends with
    status 408. A client that makes its response wait for more than `write_seconds` in all counts as disconnected: later
    messages are dropped and `receive` returns `http.disconnect`. A body that breaks off may also be badly framed, in
    which case its sender is still there and gets the error response.
    """

    def __init__(
        self, receive: Receive, send: Send, *, memory: BodyMemory, read_seconds: float, write_seconds: float
    ) -> None:
        self._receive, self._send, self._memory = receive, send, memory
        self._read_seconds, self._write_seconds_left = read_seconds, write_seconds
        self._started, self._size, self._held = time.monotonic(), 0, 0
        self._streamed = False
        self._body_read = self._broken_off = False
        self._disconnected = asyncio.Event()
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
            self._memory.release(self._held)

    def attach(self, scope: Any) -> None:
        """Store this connection where `connection_of` finds it."""
        scope.setdefault("state", {})[_KEY] = self

    def stream_body(self) -> None:
        """The body is not kept: it does not count as memory. Call it before the body is read."""
        self._streamed = True

    def on_end(self, close: Callable[[], Awaitable[Any]]) -> None:
        """Await `close()` when the request has ended."""
        self._closing.push_async_callback(close)

    async def wait_disconnected(self) -> None:
        """Wait until the client has disconnected, or counts as such. Call it only after the body has been read."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._watch_disconnect(), name="disconnect")
        await self._disconnected.wait()

    async def receive(self) -> HTTPReceiveMessage:
        """ASGI's receive. After the body, all callers share one watch for the disconnect."""
        if self._body_read:
            await self.wait_disconnected()
            return {"type": "http.disconnect"}
        message = await self._receive_body()
        if message["type"] == "http.request":
            size = len(message.get("body") or b"")
            if not self._streamed:
                self._memory.take(size)
                self._held += size
            self._size += size
            self._body_read = not message.get("more_body")
        else:
            self._body_read = self._broken_off = True
            self._disconnected.set()
        return message

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        if self._disconnected.is_set() and not self._broken_off and message["type"] == "http.response.body":
            return
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._write_seconds_left):
                await self._send(message)
        except TimeoutError:
            self._disconnected.set()
        self._write_seconds_left = max(0.0, self._write_seconds_left - (time.monotonic() - started))

    async def _receive_body(self) -> HTTPReceiveMessage:
        left = self._started + self._read_seconds + self._size / MIN_BODY_RATE - time.monotonic()
        try:
            async with asyncio.timeout(left):
                return cast("HTTPReceiveMessage", await self._receive())
        except TimeoutError:
            self._body_read = True
            raise HTTPException(
                f"the body did not come in time: {self._size:,} bytes in {time.monotonic() - self._started:.0f} s; "
                "send it again",
                status_code=408,
            ) from None

    async def _watch_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            """The body has been read; nothing else can come."""
        self._disconnected.set()


def connection_of(request: Request[Any, Any, Any]) -> Connection:
    """The request's connection, or one without limits if the middleware did not run."""
    connection = request.scope.get("state", {}).get(_KEY)
    if isinstance(connection, Connection):
        return connection
    return Connection(request.receive, request.send, memory=BodyMemory(), read_seconds=1e9, write_seconds=1e9)


async def cancel_on_disconnect(request: Request[Any, Any, Any], work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of `work()`, which is cancelled if the client disconnects first."""
    working = asyncio.create_task(work())
    disconnected = asyncio.create_task(connection_of(request).wait_disconnected())
    try:
        await asyncio.wait((working, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
        return await working
    finally:
        disconnected.cancel()
        working.cancel()
        await asyncio.gather(working, disconnected, return_exceptions=True)
