"""One HTTP request's connection: time limits on the body and on the response, client disconnects, and clean-up at the
end.

Litestar has none of these limits, and the server wakes only one of several tasks that wait for a disconnect, so each
request has one watch that all of them share.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from litestar import Request
from litestar.exceptions import HTTPException
from litestar.types import HTTPReceiveMessage, Message, Receive, Send

from tunery.gateway.api.http.body_memory import BodyMemory
from tunery.gateway.api.http.time_limit import TimeLimit

__all__ = ["Connection", "cancel_on_disconnect", "connection_of"]

T = TypeVar("T")

MIN_BODY_RATE = 32 * 1024
"""Bytes per second that a body must arrive at after its first `read_seconds`."""

WATCH_AFTER = 0.02
"""Seconds of work after which the connection is watched. The server's thread takes part in watching, which would be a
tenth of what a quick request takes."""

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
        self._loop, self._limit = asyncio.get_running_loop(), TimeLimit()
        self._started, self._size, self._held = self._loop.time(), 0, 0
        self._streamed = False
        self._body_read = self._broken_off = False
        self._disconnected = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._working: asyncio.Task[Any] | None = None
        """The task to cancel when the client disconnects."""
        self._closing = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close everything, last registered first."""
        self._limit.close()
        if self._watch_timer is not None:
            self._watch_timer.cancel()
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
        self._start_watch()
        await self._disconnected.wait()

    async def cancel_on_disconnect(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work()`, which is cancelled if the client disconnects first: then raises CancelledError."""
        if self._disconnected.is_set():
            raise asyncio.CancelledError
        if self._watch is None and self._watch_timer is None:
            self._watch_timer = self._loop.call_later(WATCH_AFTER, self._start_watch)
        self._working = asyncio.current_task()
        try:
            return await work()
        finally:
            if self._working is None and (task := asyncio.current_task()) is not None:
                task.uncancel()  # it was the client, not whoever started this task
            self._working = None

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
            self._disconnect()
        return message

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        if self._disconnected.is_set() and not self._broken_off and message["type"] == "http.response.body":
            return
        started = self._loop.time()
        try:
            await self._limit.wait(self._send(message), until=started + self._write_seconds_left)
        except TimeoutError:
            self._disconnect()
        self._write_seconds_left = max(0.0, self._write_seconds_left - (self._loop.time() - started))

    async def _receive_body(self) -> HTTPReceiveMessage:
        until = self._started + self._read_seconds + self._size / MIN_BODY_RATE
        try:
            return cast("HTTPReceiveMessage", await self._limit.wait(self._receive(), until=until))
        except TimeoutError:
            self._body_read = True
            raise HTTPException(
                f"the body did not come in time: {self._size:,} bytes in {self._loop.time() - self._started:.0f} s; "
                "send it again",
                status_code=408,
            ) from None

    async def _watch_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            """The body has been read; nothing else can come."""
        self._disconnect()

    def _start_watch(self) -> None:
        if self._watch is None:
            self._watch = asyncio.create_task(self._watch_disconnect(), name="disconnect")

    def _disconnect(self) -> None:
        """Note that nobody is there to answer."""
        self._disconnected.set()
        if self._working is not None:
            self._working.cancel()
            self._working = None


def connection_of(request: Request[Any, Any, Any]) -> Connection:
    """The request's connection, or one without limits if the middleware did not run."""
    connection = request.scope.get("state", {}).get(_KEY)
    if isinstance(connection, Connection):
        return connection
    return Connection(request.receive, request.send, memory=BodyMemory(), read_seconds=1e9, write_seconds=1e9)


async def cancel_on_disconnect(request: Request[Any, Any, Any], work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work()`, which is cancelled if the client disconnects first."""
    return await connection_of(request).cancel_on_disconnect(work)
