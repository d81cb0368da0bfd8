"""Owns the engine's process: starts it, starts it again when it dies or hangs, and ends it. Nothing durable lives in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import msgspec

from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.interface import Outage
from tunery.gateway.engine.ipc.client import RESTARTED, EngineClient
from tunery.gateway.engine.ipc.heartbeat import TICK_EVERY, EngineLimits, Pulse
from tunery.gateway.engine.messages import Embed, Embedded, Generate, Loaded, Ready, Stats, Token, Unloaded
from tunery.registry.errors import Unavailable

__all__ = ["EngineProcess"]

log = logging.getLogger("tunery.engine")

COMMAND = (sys.executable, "-m", "tunery.gateway.engine.process")
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
GIVE_UP_AFTER = 5
"""Starts in a row without ever having been ready; then the configuration is at fault and not chance."""
STOP_SECONDS = 5.0
FIRST_START = 10.0
"""Seconds that a start is thought to take while none has been seen."""
LONGEST_RETRY = 60.0


class EngineProcess:
    """An Engine in a process of its own. `command` is what to run; tests run something smaller.

    Requests that have no token yet when an engine ends are sent to the next one, once.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        command: Sequence[str] = COMMAND,
        limits: EngineLimits | None = None,
    ) -> None:
        self._config = config
        self._command = command
        self._limits = limits or EngineLimits()
        self._pulse = Pulse()
        self._hung = False
        self._started_at = time.monotonic()
        self._start_seconds = FIRST_START
        self._client: EngineClient | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ready: Ready | None = None
        self._stats: Stats | None = None
        self._callbacks: list[Callable[[Stats], None]] = []
        self._changed = asyncio.Event()
        self._failed: Unavailable | None = None
        self._restarts = 0

    @property
    def ready(self) -> Ready | None:
        """See Engine.ready."""
        return None if self._hung else self._ready

    @property
    def outage(self) -> Outage | None:
        """See Engine.outage."""
        if self._failed is not None:
            return Outage("failed", math.ceil(LONGEST_RETRY))
        if self.ready is not None:
            return None
        if self._ready is not None:
            left = self._limits.restart - self._pulse.silence + self._start_seconds
            return Outage("not responding", _whole(left))
        return Outage("starting", _whole(self._start_seconds - (time.monotonic() - self._started_at)))

    @property
    def stats(self) -> Stats | None:
        """See Engine.stats."""
        return self._stats

    @property
    def restarts(self) -> int:
        """See Engine.restarts."""
        return self._restarts

    @property
    def pid(self) -> int | None:
        """The process id of the running engine."""
        return self._process.pid if self._process else None

    def on_stats(self, callback: Callable[[Stats], None]) -> None:
        """See Engine.on_stats."""
        self._callbacks.append(callback)

    async def start(self) -> None:
        """Begin to start, unless that has begun, and from then on keep an engine running."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="engine")

    async def wait_ready(self) -> Ready:
        """Wait until the engine can answer."""
        while (ready := self.ready) is None:
            if self._failed is not None:
                raise self._failed
            self._changed.clear()
            await self._changed.wait()
        return ready

    async def stop(self) -> None:
        """End the engine: ask, then insist."""
        if self._keeper is not None:
            if self._client is not None:
                self._client.shut_down()
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        self._ready = None
        # Whoever waits for an engine is told that there will be none.
        self._failed = self._failed or Unavailable("the engine has been stopped", code="engine_stopped")
        self._changed.set()

    async def generate(self, request: Generate) -> AsyncGenerator[Token, None]:
        """See Engine.generate."""
        begun = again = False
        while True:
            client = await self._connected()
            try:
                async with contextlib.aclosing(client.generate(request)) as tokens:
                    async for token in tokens:
                        begun = True
                        yield token
                return
            except Unavailable as error:
                if begun or again or error.code != RESTARTED:
                    raise self._with_retry(error) from None
                again = True

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
        """The engine's client, after waiting a bounded time for an engine that can answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.hold):
                await self.wait_ready()
        if self._client is None or self.ready is None:
            raise self._with_retry(Unavailable("the engine is starting; try again later", code="engine_starting"))
        return self._client

    def _with_retry(self, error: Unavailable) -> Unavailable:
        """The error, saying when to come back."""
        if (outage := self.outage) is not None:
            error.retry_after = outage.retry_after
        return error

    async def _keep(self) -> None:
        """Run engines one after the other, pausing longer while they die early."""
        early, pause, ever_ready = 0, FIRST_PAUSE, False
        while True:
            became_ready = await self._tried()
            if self._failed is not None and not ever_ready:
                self._changed.set()
                return
            self._failed = None
            early, pause = (0, FIRST_PAUSE) if became_ready else (early + 1, min(2 * pause, LONGEST_PAUSE))
            ever_ready = ever_ready or became_ready
            # One that has worked before is tried for ever: what keeps it from starting now may pass.
            if early >= GIVE_UP_AFTER and not ever_ready:
                self._failed = Unavailable(
                    f"the engine ended {early} times before it was ready; see its messages above", code="engine_failed"
                )
                self._changed.set()
                return
            self._restarts += 1
            log.warning("the engine ended; starting it again in %.1f s", pause)
            await asyncio.sleep(pause)

    async def _tried(self) -> bool:
        """Run one engine; what goes wrong around it must not end the keeping."""
        try:
            return await self._run_once()
        except Exception:
            log.exception("the engine could not be run")
            return False

    async def _run_once(self) -> bool:
        """One engine from start to end; whether it ever became ready."""
        became_ready = False

        def on_ready(ready: Ready) -> None:
            nonlocal became_ready
            became_ready = True
            self._ready = ready
            self._start_seconds = time.monotonic() - self._started_at
            self._changed.set()

        with tempfile.TemporaryDirectory(prefix="tunery-") as folder:
            path = str(Path(folder) / "engine.sock")
            connected: asyncio.Future[EngineClient] = asyncio.get_running_loop().create_future()
            server = await asyncio.start_unix_server(lambda r, w: _accept(connected, r, w), path, limit=2**20)
            arguments = ("--socket", path, "--config", msgspec.json.encode(self._config).decode())
            self._pulse, self._hung, self._started_at = Pulse(), False, time.monotonic()
            try:
                self._process = await asyncio.create_subprocess_exec(*self._command, *arguments)
                await self._listen_to(self._process, connected, on_ready)
            finally:
                server.close()
        return became_ready

    async def _listen_to(
        self,
        process: asyncio.subprocess.Process,
        connected: asyncio.Future[EngineClient],
        on_ready: Callable[[Ready], None],
    ) -> None:
        """Hand out what the process says until it ends, or we do."""
        ended = asyncio.create_task(process.wait())
        watching = asyncio.create_task(self._watch(process), name="engine-pulse")
        try:
            await asyncio.wait((ended, connected), return_when=asyncio.FIRST_COMPLETED)
            if connected.done():
                self._client = connected.result()
                await self._client.listen(on_ready, self._take_stats, self._pulse.take)
                if (refusal := self._client.refusal) is not None:
                    self._failed = Unavailable(refusal.message, code=refusal.code)
        finally:
            watching.cancel()
            self._ready = self._client = None
            await _end(process, ended)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Notice when the engine falls silent, and when it comes back; kill it when it has been silent for too long."""
        pulse = self._pulse
        while pulse.silence < self._limits.restart:
            await asyncio.sleep(TICK_EVERY)
            pulse.tick()
            before, self._hung = self._hung, pulse.silence >= self._limits.unready
            if self._hung and not before:
                log.warning("the engine has not responded for %.0f s; nothing new is sent to it", pulse.silence)
            elif before and not self._hung:
                log.warning("the engine responds again")
                self._changed.set()
        log.error("the engine has not responded for %.0f s and is killed", pulse.silence)
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    def _take_stats(self, stats: Stats) -> None:
        self._stats = stats
        for callback in self._callbacks:
            try:
                callback(stats)
            except Exception:
                log.exception("the engine's state could not be shown")


def _whole(seconds: float) -> int:
    """Seconds until trying again may help, as a header says them."""
    return math.ceil(min(max(seconds, 1.0), LONGEST_RETRY))


async def _accept(
    connected: asyncio.Future[EngineClient], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    if connected.done():
        writer.close()
    else:
        connected.set_result(EngineClient(reader, writer))


async def _end(process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
    """Wait a little for the process to end by itself, then kill it; also when we are being cancelled."""
    try:
        await asyncio.wait_for(asyncio.shield(ended), STOP_SECONDS)
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await ended
