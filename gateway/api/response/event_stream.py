"""Sends a streamed response as server-sent events.

A stream whose first event is slow starts without it and sends comments while there is nothing else to send, because
proxies and clients drop silent connections. Litestar's `Stream` does the sending; its `ServerSentEvent` is not used
because it hands every stream's first event to a thread and decodes, splits and encodes each event again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.response import Stream

from tunery.gateway.api.http.connection import cancel_on_disconnect, connection_of
from tunery.gateway.api.http.errors import envelope, status_of
from tunery.registry.errors import TuneryError

__all__ = ["event_stream"]

log = logging.getLogger("tunery.gateway")

T = TypeVar("T")

FIRST_COMMENT, COMMENT_EVERY = 2.0, 10.0
"""Seconds without an event after which a comment is sent: before the first event, and later."""

_DONE = b"data: [DONE]\n\n"
_COMMENT = b": queued\n\n"


async def event_stream(
    request: Request[Any, Any, Any], chunks: AsyncGenerator[Any, None], *, headers: dict[str, str]
) -> Stream:
    """A response that sends each chunk as an event, then `[DONE]`.

    Waits up to `FIRST_COMMENT` seconds for the first chunk, so that an early failure is still an ordinary error
    response, and stops waiting when the client disconnects. Closes `chunks` when the request ends, however its
    connection ends.
    """
    events = _with_keep_alive(chunks)
    connection_of(request).on_end(events.aclose)
    first = await cancel_on_disconnect(request, lambda: _first(events))

    async def body() -> AsyncGenerator[bytes, None]:
        yield _event(first)
        try:
            async for chunk in events:
                yield _event(chunk)
        except TuneryError as error:
            yield _event(envelope(error.args[0], status=status_of(error), code=error.code, param=error.param))
        except Exception:
            log.exception("a stream failed")
            yield _event(envelope("something went wrong here; it has been logged", status=500, code="internal_error"))
        yield _DONE

    # Without X-Accel-Buffering, proxies such as nginx collect events before passing them on.
    all_headers = {"cache-control": "no-cache", "x-accel-buffering": "no", **headers}
    return Stream(body(), media_type="text/event-stream", headers=all_headers)


async def _with_keep_alive(chunks: AsyncGenerator[T, None]) -> AsyncGenerator[T | None, None]:
    """Yield chunks as they come, reading one ahead; yield None whenever a comment is due."""
    queue: asyncio.Queue[T | BaseException] = asyncio.Queue(maxsize=1)
    pumping = asyncio.create_task(_pump(chunks, queue))
    patience = FIRST_COMMENT
    try:
        while True:
            item: T | BaseException | None = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    item = await queue.get()
            patience = COMMENT_EVERY
            if isinstance(item, StopAsyncIteration):
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)


async def _pump(chunks: AsyncGenerator[T, None], queue: asyncio.Queue[T | BaseException]) -> None:
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


def _event(chunk: Any) -> bytes:
    return _COMMENT if chunk is None else b"data: " + msgspec.json.encode(chunk) + b"\n\n"
