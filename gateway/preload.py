"""Loads and pins the preloaded adapters whenever an engine becomes ready. A failure is logged and stops nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from tunery.gateway.engine.interface import Engine
from tunery.gateway.engine.messages import Ready, Stats
from tunery.gateway.resolver import Resolver
from tunery.registry.errors import InvalidInput, TuneryError

__all__ = ["Preloader"]

log = logging.getLogger("tunery.gateway")


class Preloader:
    """Loads `references`, as they resolve at the time, into each new engine; logs and skips those that fail."""

    def __init__(self, references: Sequence[str], *, engine: Engine, resolver: Resolver) -> None:
        self._references, self._engine, self._resolver = references, engine, resolver
        self._loaded_for: Ready | None = None
        self._task: asyncio.Task[None] | None = None

    def on_stats(self, stats: Stats) -> None:
        """Start loading if these are the first stats of an engine that has just become ready."""
        ready = self._engine.ready
        if not self._references or ready is None or ready is self._loaded_for:
            return
        self._loaded_for = ready
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._load_all(), name="preload")

    async def stop(self) -> None:
        """Stop loading."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _load_all(self) -> None:
        for reference in self._references:
            try:
                await self._load(reference)
            except TuneryError as error:
                log.warning("%s is not preloaded: %s", reference, error.message)
            except Exception:
                log.exception("%s is not preloaded", reference)

    async def _load(self, reference: str) -> None:
        composition = self._resolver.resolve_one(reference).composition
        if not composition:
            raise InvalidInput("it is the base, which is always in memory")
        await self._engine.load(composition[0].source, pin=True)
