"""What the gateway needs from an engine: the protocol that the supervised process and the test double implement."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Literal, Protocol

import msgspec

from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.messages import Embed, Embedded, Generate, Loaded, Ready, Stats, Token, Unloaded

__all__ = ["Engine", "Outage"]


class Outage(msgspec.Struct, frozen=True):
    """Why an engine cannot answer now; `retry_after` is in about how many seconds it can."""

    reason: Literal["starting", "not responding", "failed"]
    retry_after: int


class Engine(Protocol):
    """Turns token ids into token ids. Every call may raise Unavailable when the engine dies."""

    @property
    def ready(self) -> Ready | None:
        """The engine's description of itself; None while it cannot answer."""

    @property
    def outage(self) -> Outage | None:
        """Why it cannot answer; None while it can."""

    @property
    def stats(self) -> Stats | None:
        """Its latest state; None before the first."""

    @property
    def restarts(self) -> int:
        """How often the engine was started again."""

    def on_stats(self, callback: Callable[[Stats], None]) -> None:
        """Call `callback` with every new state."""

    async def start(self) -> None:
        """Start the engine, unless that has begun; returns before it is ready."""

    async def wait_ready(self) -> Ready:
        """Wait until the engine can answer; raise Unavailable when it never will."""

    async def stop(self) -> None:
        """Stop the engine; requests that wait fail."""

    def generate(self, request: Generate) -> AsyncGenerator[Token, None]:
        """The tokens of one request, as they are generated.

        Closing the iterator cancels the request. Raises the TuneryError that the engine answered with, or Unavailable
        when it died after the first token. A request without a token yet may be held until an engine can answer again.
        """

    async def embed(self, request: Embed) -> Embedded:
        """The pooled hidden states of one prompt. Cancelling the call cancels the request."""

    async def load(self, adapter: AdapterSource, *, pin: bool = False) -> Loaded:
        """Make an adapter resident; with `pin` it is not evicted until it is unloaded."""

    async def unload(self, digest: str) -> Unloaded:
        """Free an adapter's memory."""
