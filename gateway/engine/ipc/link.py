"""A link to an engine from first contact to its end: whether it can answer, and whether it shows signs of life."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from tunery.gateway.engine.ipc.client import EngineClient
from tunery.gateway.engine.ipc.heartbeat import TICK_EVERY, EngineTimeouts, SilenceMonitor
from tunery.gateway.engine.messages import Failed, Ready, Stats

__all__ = ["EngineLink"]

log = logging.getLogger("tunery.engine")


class EngineLink:
    """`ready` is set while the engine can answer, `hung` while it shows no sign of life, `was_ready` once it has ever
    been ready, after `start_seconds`. `refusal` says why the engine does not serve its base. `on_change` is called when
    `ready` is set and when a hung engine responds again.
    """

    def __init__(
        self, timeouts: EngineTimeouts, *, on_change: Callable[[], None], on_stats: Callable[[Stats], None]
    ) -> None:
        self._timeouts = timeouts
        self._on_change = on_change
        self._on_stats = on_stats
        self._monitor = SilenceMonitor()
        self.client: EngineClient | None = None
        self.ready: Ready | None = None
        self.was_ready = False
        self.hung = False
        self.refusal: Failed | None = None
        self.started_at = time.monotonic()
        self.start_seconds: float | None = None

    @property
    def silence(self) -> float:
        """Seconds without a sign of life; see SilenceMonitor."""
        return self._monitor.silence

    async def listen(self, client: EngineClient) -> None:
        """Deliver the engine's events until it is gone."""
        self.client = client
        try:
            await client.listen(self._become_ready, self._on_stats, self._monitor.record)
            self.refusal = client.refusal
        finally:
            self.ready = self.client = None

    async def watch(self) -> None:
        """Notice when the engine falls silent and when it responds again, until it has been silent for too long."""
        monitor = self._monitor
        while monitor.silence < self._timeouts.restart:
            await asyncio.sleep(TICK_EVERY)
            monitor.tick()
            before, self.hung = self.hung, monitor.silence >= self._timeouts.unready
            if self.hung and not before:
                log.warning("the engine has not responded for %.0f s; no new requests are sent to it", monitor.silence)
            elif before and not self.hung:
                log.warning("the engine responds again")
                self._on_change()

    def _become_ready(self, ready: Ready) -> None:
        self.ready, self.was_ready = ready, True
        self.start_seconds = time.monotonic() - self.started_at
        self._on_change()
