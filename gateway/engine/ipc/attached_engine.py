"""An Engine that another process runs: this one attaches to it, and attaches again when it was started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from tunery.gateway.engine.ipc.client import EngineClient
from tunery.gateway.engine.ipc.connected_engine import ConnectedEngine
from tunery.gateway.engine.ipc.heartbeat import EngineTimeouts
from tunery.gateway.engine.ipc.link import EngineLink
from tunery.registry.errors import Unavailable

__all__ = ["AttachedEngine"]

log = logging.getLogger("tunery.engine")

RETRY_SECONDS = 0.05
"""Seconds between attempts to attach."""


class AttachedEngine(ConnectedEngine):
    """The engine at a Unix socket; starting and stopping it means attaching and detaching."""

    def __init__(self, path: Path, *, timeouts: EngineTimeouts | None = None) -> None:
        self._path = path
        self._task: asyncio.Task[None] | None = None
        super().__init__(timeouts or EngineTimeouts())

    async def start(self) -> None:
        """See Engine.start."""
        if self._task is None:
            self._task = asyncio.create_task(self._stay_attached(), name="engine")

    async def stop(self) -> None:
        """See Engine.stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._fail(Unavailable("the engine has been stopped", code="engine_stopped"))

    async def _stay_attached(self) -> None:
        while True:
            self._link = self._new_link()
            client = await self._attach()
            watching = asyncio.create_task(self._link.watch(), name="engine-watch")
            try:
                await self._link.listen(client)
            finally:
                watching.cancel()
            if self._link.was_ready:  # or else the connection was to the end of one that counts already
                self._restarts += 1
                log.warning("the engine ended; attaching to the next")
            else:
                await asyncio.sleep(RETRY_SECONDS)

    async def _attach(self) -> EngineClient:
        """A connection to the engine, as soon as it listens."""
        while True:
            try:
                return EngineClient(*await asyncio.open_unix_connection(self._path, limit=2**20))
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)

    def _new_link(self) -> EngineLink:
        return EngineLink(self._timeouts, on_change=self._note_change, on_stats=self._take_stats)
