"""An Engine behind a connection that comes and goes: requests wait for it, and survive one loss of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable

from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.interface import Outage
from tunery.gateway.engine.ipc.client import RESTARTED, EngineClient
from tunery.gateway.engine.ipc.heartbeat import EngineTimeouts
from tunery.gateway.engine.ipc.link import EngineLink
from tunery.gateway.engine.messages import Embed, Embedded, Generate, Loaded, Ready, Stats, Token, Unloaded
from tunery.registry.errors import Unavailable

__all__ = ["ConnectedEngine"]

log = logging.getLogger("tunery.engine")

EXPECTED_START = 10.0
"""Seconds that a start is expected to take as long as none has been observed."""
MAX_RETRY_AFTER = 60.0


class ConnectedEngine:
    """See Engine for what the methods do. A request that has no token yet when an engine ends is sent to the next
    engine, once. Whoever inherits this runs one link after another.
    """

    def __init__(self, timeouts: EngineTimeouts) -> None:
        self._timeouts = timeouts
        self._link = self._new_link()
        self._start_seconds = EXPECTED_START
        self._stats: Stats | None = None
        self._callbacks: list[Callable[[Stats], None]] = []
        self._changed = asyncio.Event()
        self._failed: Unavailable | None = None
        self._restarts = 0

    @property
    def ready(self) -> Ready | None:
        """See Engine.ready."""
        return None if self._link.hung else self._link.ready

    @property
    def outage(self) -> Outage | None:
        """See Engine.outage."""
        if self._failed is not None:
            return Outage("failed", math.ceil(MAX_RETRY_AFTER))
        if self.ready is not None:
            return None
        if self._link.ready is not None:
            until_restart = self._timeouts.restart - self._link.silence
            return Outage("not responding", _retry_after(until_restart + self._start_seconds))
        return Outage("starting", _retry_after(self._start_seconds - (time.monotonic() - self._link.started_at)))

    @property
    def stats(self) -> Stats | None:
        """See Engine.stats."""
        return self._stats

    @property
    def restarts(self) -> int:
        """See Engine.restarts."""
        return self._restarts

    def on_stats(self, callback: Callable[[Stats], None]) -> None:
        """See Engine.on_stats."""
        self._callbacks.append(callback)

    async def wait_ready(self) -> Ready:
        """See Engine.wait_ready."""
        while (ready := self.ready) is None:
            if self._failed is not None:
                raise self._failed
            self._changed.clear()
            await self._changed.wait()
        return ready

    async def generate(self, request: Generate) -> AsyncGenerator[Token, None]:
        """See Engine.generate."""
        begun = resent = False
        while True:
            client = await self._connected()
            try:
                async with contextlib.aclosing(client.generate(request)) as tokens:
                    async for token in tokens:
                        begun = True
                        yield token
                return
            except Unavailable as error:
                if begun or resent or error.code != RESTARTED:
                    raise self._with_retry(error) from None
                resent = True

    async def embed(self, request: Embed) -> Embedded:
        """See Engine.embed."""
        try:
            return await (await self._connected()).embed(request)
        except Unavailable as error:
            if error.code != RESTARTED:
                raise
        return await (await self._connected()).embed(request)

    async def load(self, adapter: AdapterSource, *, pin: bool = False) -> Loaded:
        """See Engine.load."""
        return await (await self._connected()).load(adapter, pin=pin)

    async def unload(self, digest: str) -> Unloaded:
        """See Engine.unload."""
        return await (await self._connected()).unload(digest)

    async def _connected(self) -> EngineClient:
        """The client of an engine that can answer, after waiting a bounded time for one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeouts.hold):
                await self.wait_ready()
        client = self._link.client
        if client is None or self.ready is None:
            raise self._with_retry(Unavailable("the engine is starting; try again later", code="engine_starting"))
        return client

    def _new_link(self) -> EngineLink:
        """The link to the next engine."""
        raise NotImplementedError

    def _with_retry(self, error: Unavailable) -> Unavailable:
        if (outage := self.outage) is not None:
            error.retry_after = outage.retry_after
        return error

    def _fail(self, error: Unavailable) -> None:
        """Say for good why there is no engine."""
        self._failed = self._failed or error
        self._changed.set()

    def _note_change(self) -> None:
        self._start_seconds = self._link.start_seconds or self._start_seconds
        self._changed.set()

    def _take_stats(self, stats: Stats) -> None:
        self._stats = stats
        for callback in self._callbacks:
            try:
                callback(stats)
            except Exception:
                log.exception("the engine's state could not be shown")


def _retry_after(seconds: float) -> int:
    """Seconds for a Retry-After header, 1 to MAX_RETRY_AFTER."""
    return math.ceil(min(max(seconds, 1.0), MAX_RETRY_AFTER))
