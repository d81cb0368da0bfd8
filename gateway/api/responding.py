"""Owns sending answers: whole or as server-sent events, and noticing that the client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.response import Stream

from tunery.gateway.api.errors import envelope, status_of
from tunery.registry.errors import TuneryError

__all__ = ["event_stream", "or_disconnect"]

log = logging.getLogger("tunery.gateway")

T = TypeVar("T")

_DONE = b"data: [DONE]\n\n"


async def event_stream(
    request: Request[Any, Any, Any], chunks: AsyncGenerator[Any, None], *, headers: dict[str, str]
) -> Stream:
    """A response that sends each chunk as an event, then `[DONE]`.

    Waits for the first chunk, so that what fails before it is still an ordinary error response, and gives up waiting when the
    client does.
    """
    first = await or_disconnect(request, lambda: _first(chunks))

    async def body() -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(chunks):
            yield _event(first)
            try:
                async for chunk in chunks:
                    yield _event(chunk)
            except TuneryError as error:
                yield _event(envelope(error.args[0], status=status_of(error), code=error.code, param=error.param))
            except Exception:
                log.exception("a stream failed")
                yield _event(
                    envelope("something went wrong here; it has been logged", status=500, code="internal_error")
                )
            yield _DONE

    # X-Accel-Buffering: proxies such as nginx would otherwise collect the events.
    every = {"cache-control": "no-cache", "x-accel-buffering": "no", **headers}
    return Stream(body(), media_type="text/event-stream", headers=every)


async def or_disconnect(request: Request[Any, Any, Any], work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of `work`, which is cancelled when the client goes away before it is there."""
    working = asyncio.create_task(work())
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
        return await working
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _first(chunks: AsyncGenerator[T, None]) -> T:
    return await anext(chunks)


async def _disconnected(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        """The body has been read; nothing else can come."""


def _event(chunk: Any) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
