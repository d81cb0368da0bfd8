"""Owns sending answers: whole or as server-sent events, and noticing that the client has gone.

A stream whose first event is long in coming begins without it, and sends comments while nothing else can be sent: proxies and
clients give up on connections that are silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.response import Stream

from tunery.gateway.api.http.connection import connection_of
from tunery.gateway.api.http.errors import envelope, status_of
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.messages import Ready
from tunery.gateway.resolver import Target
from tunery.registry.errors import TuneryError

__all__ = ["await_engine", "event_stream", "or_disconnect"]

log = logging.getLogger("tunery.gateway")

T = TypeVar("T")

FIRST_COMMENT, COMMENT_EVERY = 2.0, 10.0
"""Seconds without an event after which a comment is sent: at the beginning, and from then on."""

_DONE = b"data: [DONE]\n\n"
_COMMENT = b": queued\n\n"


async def event_stream(
    request: Request[Any, Any, Any], chunks: AsyncGenerator[Any, None], *, headers: dict[str, str]
) -> Stream:
    """A response that sends each chunk as an event, then `[DONE]`.

    Waits `FIRST_COMMENT` seconds for the first chunk, so that what fails before it is still an ordinary error response, and
    gives up waiting when the client does. `chunks` is closed when the request ends, whatever became of its connection.
    """
    events = _with_pulse(chunks)
    connection_of(request).on_end(events.aclose)
    first = await or_disconnect(request, lambda: _first(events))

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

    # X-Accel-Buffering: proxies such as nginx would otherwise collect the events.
    every = {"cache-control": "no-cache", "x-accel-buffering": "no", **headers}
    return Stream(body(), media_type="text/event-stream", headers=every)


async def await_engine(request: Request[Any, Any, Any], gateway: Gateway, target: Target) -> Ready:
    """The engine's description, as Gateway.engine_available; gives up waiting when the client does."""
    if gateway.engine.ready is not None:
        return gateway.engine_ready()
    return await or_disconnect(request, lambda: gateway.engine_available(target))


async def or_disconnect(request: Request[Any, Any, Any], work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of `work`, which is cancelled when the client goes away before it is there."""
    working = asyncio.create_task(work())
    leaving = asyncio.create_task(connection_of(request).gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
        return await working
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _with_pulse(chunks: AsyncGenerator[T, None]) -> AsyncGenerator[T | None, None]:
    """The chunks as they come, one ahead of the reader; None whenever there was none for so long that a comment is due."""
    queue: asyncio.Queue[T | BaseException] = asyncio.Queue(maxsize=1)
    pumping = asyncio.create_task(_pump(chunks, queue))
    due = FIRST_COMMENT
    try:
        while True:
            item: T | BaseException | None = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due):
                    item = await queue.get()
            due = COMMENT_EVERY
            if isinstance(item, StopAsyncIteration):
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)


async def _pump(chunks: AsyncGenerator[T, None], queue: asyncio.Queue[T | BaseException]) -> None:
    """Move the chunks to the queue, and after them how they ended."""
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
