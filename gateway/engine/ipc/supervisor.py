"""The supervisor: an Engine in a process of its own, which is started again when it dies or hangs.

Nothing durable is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.ipc.connected_engine import ConnectedEngine
from tunery.gateway.engine.ipc.engine_run import EngineRun
from tunery.gateway.engine.ipc.heartbeat import EngineTimeouts
from tunery.registry.errors import Unavailable

__all__ = ["SupervisedEngine"]

log = logging.getLogger("tunery.engine")

COMMAND = (sys.executable, "-m", "tunery.gateway.engine.process")
FIRST_PAUSE, MAX_PAUSE = 0.1, 10.0
"""Seconds before an engine that ended is started again: at first, and at most; doubled while it
ends before it is ready."""
MAX_FAILED_STARTS = 5
"""Starts in a row after which an engine that has never been ready is given up: the configuration is at fault."""


class SupervisedEngine(ConnectedEngine):
    """`command` is the process to run; tests run a smaller one. Other gateway processes may attach to it at the Unix
    socket `attach`.
    """

    _link: EngineRun

    def __init__(
        self,
        config: EngineConfig,
        *,
        command: Sequence[str] = COMMAND,
        timeouts: EngineTimeouts | None = None,
        attach: Path | None = None,
    ) -> None:
        self._config = config
        self._command = command
        self._attach = attach
        self._task: asyncio.Task[None] | None = None
        super().__init__(timeouts or EngineTimeouts())

    @property
    def pid(self) -> int | None:
        """The process id of the latest engine; None before the first."""
        return self._link.pid

    async def start(self) -> None:
        """See Engine.start. From then on an engine is kept running."""
        if self._task is None:
            self._task = asyncio.create_task(self._supervise(), name="engine")

    async def stop(self) -> None:
        """See Engine.stop: asks the process to exit, then kills it."""
        if self._task is not None:
            if self._link.client is not None:
                self._link.client.shut_down()
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._fail(Unavailable("the engine has been stopped", code="engine_stopped"))

    async def _supervise(self) -> None:
        """Run one engine after another, with longer pauses while they end before they are ready."""
        failed_starts, pause, ever_ready = 0, FIRST_PAUSE, False
        while True:
            became_ready = await self._run_once()
            refusal = self._link.refusal
            if refusal is not None and not ever_ready:
                self._fail(Unavailable(refusal.message, code=refusal.code))
                return
            failed_starts = 0 if became_ready else failed_starts + 1
            pause = FIRST_PAUSE if became_ready else min(2 * pause, MAX_PAUSE)
            ever_ready = ever_ready or became_ready
            # One that has worked before is started for ever: what keeps it from starting now may pass.
            if failed_starts >= MAX_FAILED_STARTS and not ever_ready:
                message = f"the engine ended {failed_starts} times before it was ready; see its messages above"
                self._fail(Unavailable(message, code="engine_failed"))
                return
            self._restarts += 1
            log.warning("the engine ended; starting it again in %.1f s", pause)
            await asyncio.sleep(pause)

    async def _run_once(self) -> bool:
        """Run one engine from start to end; whether it ever became ready.

        Errors are logged, so that supervision goes on.
        """
        self._link = self._new_link()
        try:
            await self._link.run()
        except Exception:
            log.exception("the engine could not be run")
            return False
        return self._link.was_ready

    def _new_link(self) -> EngineRun:
        return EngineRun(
            self._config,
            self._command,
            self._timeouts,
            attach=self._attach,
            on_change=self._note_change,
            on_stats=self._take_stats,
        )
