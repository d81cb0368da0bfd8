"""The supervisor: an Engine in a process of its own, which is started again when it dies or hangs.

Nothing durable is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.interface import Outage
from tunery.gateway.engine.ipc.client import RESTARTED, EngineClient
from tunery.gateway.engine.ipc.engine_run import EngineRun
from tunery.gateway.engine.ipc.heartbeat import EngineTimeouts
from tunery.gateway.engine.messages import Embed, Embedded, Generate, Loaded, Ready, Stats, Token, Unloaded
from tunery.registry.errors import Unavailable

__all__ = ["SupervisedEngine"]

log = logging.getLogger("tunery.engine")

COMMAND = (sys.executable, "-m", "tunery.gateway.engine.process")
FIRST_PAUSE, MAX_PAUSE = 0.1, 10.0
"""Seconds before an engine that ended is started again: at first, and at most; doubled while it
ends before it is ready."""
MAX_FAILED_STARTS = 5
"""Starts in a row after which an engine that has never been ready is given up: the configuration is at fault."""
EXPECTED_START = 10.0
"""Seconds that a start is expected to take as long as none has been observed."""
MAX_RETRY_AFTER = 60.0


class SupervisedEngine:
    """See Engine for what the methods do.

    `command` is the process to run; tests run a smaller one. A request that has no token yet when an engine ends is
    sent to the next engine, once.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        command: Sequence[str] = COMMAND,
        timeouts: EngineTimeouts | None = None,
    ) -> None:
        self._config = config
        self._command = command
        self._timeouts = timeouts or EngineTimeouts()
        self._run = self._new_run()
        self._start_seconds = EXPECTED_START
        self._task: asyncio.Task[None] | None = None
        self._stats: Stats | None = None
        self._callbacks: list[Callable[[Stats], None]] = []
        self._changed = asyncio.Event()
        self._failed: Unavailable | None = None
        self._restarts = 0

    @property
    def ready(self) -> Ready | None:
        """See Engine.ready."""
        return None if self._run.hung else self._run.ready

    @property
    def outage(self) -> Outage | None:
        """See Engine.outage."""
        if self._failed is not None:
            return Outage("failed", math.ceil(MAX_RETRY_AFTER))
        if self.ready is not None:
            return None
        if self._run.ready is not None:
            until_restart = self._timeouts.restart - self._run.silence
            return Outage("not responding", _retry_after(until_restart + self._start_seconds))
        return Outage("starting", _retry_after(self._start_seconds - (time.monotonic() - self._run.started_at)))

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
        """The process id of the latest engine; None before the first."""
        return self._run.pid

    def on_stats(self, callback: Callable[[Stats], None]) -> None:
        """See Engine.on_stats."""
        self._callbacks.append(callback)

    async def start(self) -> None:
        """See Engine.start. From then on an engine is kept running."""
        if self._task is None:
            self._task = asyncio.create_task(self._supervise(), name="engine")

    async def wait_ready(self) -> Ready:
        """See Engine.wait_ready."""
        while (ready := self.ready) is None:
            if self._failed is not None:
                raise self._failed
            self._changed.clear()
            await self._changed.wait()
        return ready

    async def stop(self) -> None:
        """See Engine.stop: asks the process to exit, then kills it."""
        if self._task is not None:
            if self._run.client is not None:
                self._run.client.shut_down()
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._failed = self._failed or Unavailable("the engine has been stopped", code="engine_stopped")
        self._changed.set()

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
        client = self._run.client
        if client is None or self.ready is None:
            raise self._with_retry(Unavailable("the engine is starting; try again later", code="engine_starting"))
        return client

    def _with_retry(self, error: Unavailable) -> Unavailable:
        if (outage := self.outage) is not None:
            error.retry_after = outage.retry_after
        return error

    # -- keeping an engine running -------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        """Run one engine after another, with longer pauses while they end before they are ready."""
        failed_starts, pause, ever_ready = 0, FIRST_PAUSE, False
        while True:
            became_ready = await self._run_once()
            refusal = self._run.refusal
            if refusal is not None and not ever_ready:
                self._give_up(Unavailable(refusal.message, code=refusal.code))
                return
            failed_starts = 0 if became_ready else failed_starts + 1
            pause = FIRST_PAUSE if became_ready else min(2 * pause, MAX_PAUSE)
            ever_ready = ever_ready or became_ready
            # One that has worked before is started for ever: what keeps it from starting now may pass.
            if failed_starts >= MAX_FAILED_STARTS and not ever_ready:
                message = f"the engine ended {failed_starts} times before it was ready; see its messages above"
                self._give_up(Unavailable(message, code="engine_failed"))
                return
            self._restarts += 1
            log.warning("the engine ended; starting it again in %.1f s", pause)
            await asyncio.sleep(pause)

    async def _run_once(self) -> bool:
        """Run one engine from start to end; whether it ever became ready.

        Errors are logged, so that supervision goes on.
        """
        self._run = self._new_run()
        try:
            await self._run.run()
        except Exception:
            log.exception("the engine could not be run")
            return False
        return self._run.was_ready

    def _new_run(self) -> EngineRun:
        return EngineRun(
            self._config, self._command, self._timeouts, on_change=self._note_change, on_stats=self._take_stats
        )

    def _give_up(self, error: Unavailable) -> None:
        self._failed = error
        self._changed.set()

    def _note_change(self) -> None:
        self._start_seconds = self._run.start_seconds or self._start_seconds
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
