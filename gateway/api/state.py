"""Owns what every handler works with, wired once when the application is made, and how many requests are in hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tunery.gateway.engine.interface import Engine
from tunery.gateway.engine.messages import Ready
from tunery.gateway.metrics import Metrics
from tunery.gateway.resolver import Resolver
from tunery.plugins.data.renderer import Renderer
from tunery.registry.errors import InvalidInput, Overloaded, Unavailable
from tunery.registry.registry import Registry
from tunery.registry.settings import ServeSettings

__all__ = ["Gateway"]

T = TypeVar("T")

LONG_TEXT = 20_000
"""Characters; reading more than this takes long enough to hold up everybody else's tokens."""


@dataclass
class Gateway:
    """The parts of a running gateway. `draining` says that it is about to end and takes nothing new."""

    settings: ServeSettings
    registry: Registry
    engine: Engine
    renderer: Renderer
    resolver: Resolver
    metrics: Metrics
    in_flight: int = 0
    draining: bool = False
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def engine_ready(self) -> Ready:
        """The engine's description; raise Unavailable while nothing can be answered."""
        if self.draining:
            raise Unavailable("this server is about to end; send the request again", code="draining")
        ready = self.engine.ready
        if ready is None:
            raise Unavailable("the engine is starting; try again in a few seconds", code="engine_starting")
        return ready

    def enter(self, count: int) -> None:
        """Take `count` more requests in hand; raise Overloaded when that is too many, InvalidInput when it always would be."""
        most = self.settings.max_batch + self.settings.max_waiting
        if count > most:
            raise InvalidInput(f"the request asks for {count} answers and {most} is the most at once", param="n")
        if self.in_flight + count > most:
            raise Overloaded(f"{self.in_flight} requests are in hand and {most} is the most; try again in a second")
        self._in_hand(count)

    def leave(self, count: int) -> None:
        """They are answered, or given up."""
        self._in_hand(-count)

    async def idle(self) -> None:
        """Wait until nothing is in hand."""
        while self.in_flight:
            self._idle.clear()
            await self._idle.wait()

    async def reading(self, size: int, read: Callable[[], T]) -> T:
        """The result of `read`, which takes in `size` characters; long texts are read on a thread, off the event loop."""
        return await asyncio.to_thread(read) if size > LONG_TEXT else read()

    def _in_hand(self, change: int) -> None:
        self.in_flight += change
        self.metrics.in_flight.set(self.in_flight)
        if not self.in_flight:
            self._idle.set()
