"""Sends a streamed response as server-sent events.

A stream whose first event is slow starts without it and sends comments while there is nothing else to send, because
proxies and clients drop silent connections. Litestar's `Stream` does the sending; its `ServerSentEvent` is not used
because it hands every stream's first event to a thread and decodes, splits and encodes each event again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol, TypeVar

import msgspec
from litestar import Request
from litestar.response import Stream

from tunery.gateway.api.http.connection import cancel_on_disconnect, connection_of
from tunery.gateway.api.http.errors import envelope, status_of
from tunery.gateway.api.schemas.responses import ErrorEnvelope
from tunery.registry.errors import TuneryError

__all__ = ["EventFormat", "event_stream"]

log = logging.getLogger("tunery.gateway")

T = TypeVar("T")

FIRST_COMMENT, COMMENT_EVERY = 2.0, 10.0
"""Seconds without an event after which a comment is sent: before the first event, and later."""

_COMMENT = b": queued\n\n"


class EventFormat(Protocol):
    """How chunks, and a failure after the first of them, are written; and what ends the stream."""

    end: bytes

    def event(self, chunk: Any) -> bytes:
        """A chunk as an event."""

    def failure(self, error: ErrorEnvelope, status: int) -> bytes:
        """The failure that ends the stream, as events; `status` is what an ordinary response would have."""


class DataEvents:
    """Chunks as events without names, then `[DONE]`."""

    end = b"data: [DONE]\n\n"

    def event(self, chunk: Any) -> bytes:
        """See EventFormat."""
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def failure(self, error: ErrorEnvelope, status: int) -> bytes:
        """See EventFormat."""
        return self.event(error)


async def event_stream(
    request: Request[Any, Any, Any],
    chunks: AsyncGenerator[Any, None],
    *,
    headers: Callable[[], dict[str, str]],
    style: EventFormat | None = None,
) -> Stream:
    """A response that sends each chunk as an event, by default as DataEvents does.

    Waits up to `FIRST_COMMENT` seconds for the first chunk, so that an early failure is still an ordinary error
    response, and stops waiting when the client disconnects; `headers` is called after that. Closes `chunks` when the request ends, however its
    connection ends.
    """
    style = style or DataEvents()
    events = _with_keep_alive(chunks)
    connection_of(request).on_end(events.aclose)
    first = await cancel_on_disconnect(request, lambda: _first(events))

    async def body() -> AsyncGenerator[bytes, None]:
        yield _COMMENT if first is None else style.event(first)
        try:
            async for chunk in events:
                yield _COMMENT if chunk is None else style.event(chunk)
        except TuneryError as error:
            status = status_of(error)
            yield style.failure(envelope(error.args[0], status=status, code=error.code, param=error.param), status)
        except Exception:
            log.exception("a stream failed")
            message = "something went wrong here; it has been logged"
            yield style.failure(envelope(message, status=500, code="internal_error"), 500)
        if style.end:
            yield style.end

    # Without X-Accel-Buffering, proxies such as nginx collect events before passing them on.
    all_headers = {"cache-control": "no-cache", "x-accel-buffering": "no", **headers()}
    return Stream(body(), media_type="text/event-stream", headers=all_headers)


async def _with_keep_alive(chunks: AsyncGenerator[T, None]) -> AsyncGenerator[T | None, None]:
    """Yield chunks as they come, reading one ahead; yield None whenever a comment is due."""
    queue: asyncio.Queue[T | BaseException | None] = asyncio.Queue(maxsize=1)
    pumping = asyncio.create_task(_pump(chunks, queue))
    loop = asyncio.get_running_loop()
    due = loop.time() + FIRST_COMMENT
    timer: asyncio.TimerHandle

    def comment() -> None:
        """Put a comment where nothing else is sent; one timer a stream costs less than one a chunk."""
        nonlocal due, timer
        if loop.time() >= due:
            due = loop.time() + COMMENT_EVERY
            if queue.empty():
                queue.put_nowait(None)
        timer = loop.call_at(due, comment)

    timer = loop.call_at(due, comment)
    try:
        while True:
            item = await queue.get()
            if isinstance(item, StopAsyncIteration):
                return
            if isinstance(item, BaseException):
                raise item
            due = loop.time() + COMMENT_EVERY
            yield item
    finally:
        timer.cancel()
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)


async def _pump(chunks: AsyncGenerator[T, None], queue: asyncio.Queue[T | BaseException | None]) -> None:
    """Move chunks to the queue, followed by the exception that ended them."""
    async with contextlib.aclosing(chunks):
        try:
            async for chunk in chunks:
                await queue.put(chunk)
            await queue.put(StopAsyncIteration())
        except Exception as error:
            await queue.put(error)


async def _first(events: AsyncGenerator[T, None]) -> T:
    return await anext(events)
