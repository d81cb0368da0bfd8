"""One run of the engine process: it is started, connected, watched for signs of life, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.ipc.client import EngineClient
from tunery.gateway.engine.ipc.heartbeat import TICK_EVERY, EngineTimeouts, SilenceMonitor
from tunery.gateway.engine.messages import Failed, Ready, Stats

__all__ = ["EngineRun"]

log = logging.getLogger("tunery.engine")

STOP_SECONDS = 5.0
"""Seconds that a process gets to exit by itself before it is killed."""


class EngineRun:
    """An engine process from its start to its end; `run` lasts as long.

    `ready` is set while it can answer, `hung` while it shows no sign of life, `was_ready` once it has ever been ready,
    after `start_seconds`. `refusal` says why the engine does not serve its base. `on_change` is called when `ready` is
    set and when a hung engine responds again.
    """

    def __init__(
        self,
        config: EngineConfig,
        command: Sequence[str],
        timeouts: EngineTimeouts,
        *,
        on_change: Callable[[], None],
        on_stats: Callable[[Stats], None],
    ) -> None:
        self._config = config
        self._command = command
        self._timeouts = timeouts
        self._on_change = on_change
        self._on_stats = on_stats
        self._monitor = SilenceMonitor()
        self._process: asyncio.subprocess.Process | None = None
        self.client: EngineClient | None = None
        self.ready: Ready | None = None
        self.was_ready = False
        self.hung = False
        self.refusal: Failed | None = None
        self.started_at = time.monotonic()
        self.start_seconds: float | None = None

    @property
    def pid(self) -> int | None:
        """The process id, once it has been started."""
        return self._process.pid if self._process else None

    @property
    def silence(self) -> float:
        """Seconds without a sign of life; see SilenceMonitor."""
        return self._monitor.silence

    async def run(self) -> None:
        """Start the process and serve its connection until it ends; cancelling ends the process. Raises OSError."""
        with tempfile.TemporaryDirectory(prefix="tunery-") as folder:
            path = str(Path(folder) / "engine.sock")
            connected: asyncio.Future[EngineClient] = asyncio.get_running_loop().create_future()
            server = await asyncio.start_unix_server(lambda r, w: _accept(connected, r, w), path, limit=2**20)
            arguments = ("--socket", path, "--config", msgspec.json.encode(self._config).decode())
            try:
                self._process = await asyncio.create_subprocess_exec(*self._command, *arguments)
                await self._serve(self._process, connected)
            finally:
                server.close()

    async def _serve(self, process: asyncio.subprocess.Process, connected: asyncio.Future[EngineClient]) -> None:
        """Deliver the engine's events until the process ends or this is cancelled."""
        ended = asyncio.create_task(process.wait())
        watching = asyncio.create_task(self._watch(process), name="engine-watch")
        try:
            await asyncio.wait((ended, connected), return_when=asyncio.FIRST_COMPLETED)
            if connected.done():
                self.client = connected.result()
                await self.client.listen(self._become_ready, self._on_stats, self._monitor.record)
                self.refusal = self.client.refusal
        finally:
            watching.cancel()
            self.ready = self.client = None
            await _end(process, ended)

    def _become_ready(self, ready: Ready) -> None:
        self.ready, self.was_ready = ready, True
        self.start_seconds = time.monotonic() - self.started_at
        self._on_change()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Notice when the engine falls silent and when it responds again; kill it when it has been
        silent for too long."""
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
        log.error("the engine has not responded for %.0f s and is killed", monitor.silence)
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def _accept(
    connected: asyncio.Future[EngineClient], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    if connected.done():
        writer.close()
    else:
        connected.set_result(EngineClient(reader, writer))


async def _end(process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
    """Give the process a little time to exit, then kill it; also when this is being cancelled."""
    try:
        await asyncio.wait_for(asyncio.shield(ended), STOP_SECONDS)
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await ended
