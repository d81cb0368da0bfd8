"""Owns what the gateway asks of an engine, whichever it is: the built-in process, or a test double."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Literal, Protocol

import msgspec

from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.messages import Embed, Embedded, Generate, Loaded, Ready, Stats, Token, Unloaded

__all__ = ["Engine", "Outage"]


class Outage(msgspec.Struct, frozen=True):
    """Why an engine cannot answer now, and in about how many seconds it can."""

    reason: Literal["starting", "not responding", "failed"]
    retry_after: int


class Engine(Protocol):
    """Turns tokens into tokens."""

    @property
    def ready(self) -> Ready | None:
        """What the engine said of itself; None while it cannot answer."""

    @property
    def outage(self) -> Outage | None:
        """Why it cannot answer; None while it can."""

    @property
    def stats(self) -> Stats | None:
        """Its latest state; None before the first."""

    @property
    def restarts(self) -> int:
        """How often it had to be started again."""

    def on_stats(self, callback: Callable[[Stats], None]) -> None:
        """Call `callback` with every new state."""

    async def start(self) -> None:
        """Begin to start, unless that has begun; returns before the engine is ready."""

    async def wait_ready(self) -> Ready:
        """Wait until the engine can answer; raise Unavailable when it never will."""

    async def stop(self) -> None:
        """End it."""

    def generate(self, request: Generate) -> AsyncGenerator[Token, None]:
        """The tokens of one request as they come.

        Closing the iterator cancels the request. Raises the TuneryError that the engine answered with, or Unavailable when
        it died meanwhile. What has not begun may be held until there is an engine again.
        """

    async def embed(self, request: Embed) -> Embedded:
        """The pooled hidden states of one prompt; cancelling the call cancels the request."""

    async def load(self, adapter: AdapterSource, *, pin: bool = False) -> Loaded:
        """Make an adapter resident, and with `pin` keep it so until it is unloaded."""

    async def unload(self, digest: str) -> Unloaded:
        """Free an adapter's memory."""
