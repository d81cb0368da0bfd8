"""One run of the engine process: it is started, connected, watched for signs of life, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.ipc.client import EngineClient
from tunery.gateway.engine.ipc.heartbeat import EngineTimeouts
from tunery.gateway.engine.ipc.link import EngineLink
from tunery.gateway.engine.messages import Stats

__all__ = ["EngineRun"]

log = logging.getLogger("tunery.engine")

STOP_SECONDS = 5.0
"""Seconds that a process gets to exit by itself before it is killed."""


class EngineRun(EngineLink):
    """An engine process from its start to its end; `run` lasts as long. Other gateways may attach to it at the socket
    `attach`."""

    def __init__(
        self,
        config: EngineConfig,
        command: Sequence[str],
        timeouts: EngineTimeouts,
        *,
        attach: Path | None = None,
        on_change: Callable[[], None],
        on_stats: Callable[[Stats], None],
    ) -> None:
        super().__init__(timeouts, on_change=on_change, on_stats=on_stats)
        self._config = config
        self._command = command
        self._attach = attach
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id, once it has been started."""
        return self._process.pid if self._process else None

    async def run(self) -> None:
        """Start the process and serve its connection until it ends; cancelling ends the process. Raises OSError."""
        with tempfile.TemporaryDirectory(prefix="tunery-") as folder:
            path = str(Path(folder) / "engine.sock")
            connected: asyncio.Future[EngineClient] = asyncio.get_running_loop().create_future()
            server = await asyncio.start_unix_server(lambda r, w: _accept(connected, r, w), path, limit=2**20)
            arguments = ["--socket", path, "--config", msgspec.json.encode(self._config).decode()]
            if self._attach is not None:
                arguments += ["--listen", str(self._attach)]
            try:
                self._process = await asyncio.create_subprocess_exec(*self._command, *arguments)
                await self._serve(self._process, connected)
            finally:
                server.close()

    async def _serve(self, process: asyncio.subprocess.Process, connected: asyncio.Future[EngineClient]) -> None:
        """Deliver the engine's events until the process ends or this is cancelled."""
        ended = asyncio.create_task(process.wait())
        watching = asyncio.create_task(self._kill_when_hung(process), name="engine-watch")
        try:
            await asyncio.wait((ended, connected), return_when=asyncio.FIRST_COMPLETED)
            if connected.done():
                await self.listen(connected.result())
        finally:
            watching.cancel()
            await _end(process, ended)

    async def _kill_when_hung(self, process: asyncio.subprocess.Process) -> None:
        await self.watch()
        log.error("the engine has not responded for %.0f s and is killed", self.silence)
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
