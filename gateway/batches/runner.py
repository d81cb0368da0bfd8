"""Claims batches and runs them beside the server's other work, and clears away what uploads and batches leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable

from tunery.gateway.api.state import BACKGROUND_AHEAD, Gateway
from tunery.gateway.batches.run import BatchRun
from tunery.registry.errors import Conflict, TuneryError
from tunery.registry.records import Batch
from tunery.registry.storage.work_watch import WorkWatch

__all__ = ["BatchRunner"]

log = logging.getLogger("tunery.gateway")

MAX_RUNNING = 4
"""Batches that a gateway runs at once, so that a short one need not wait for a long one's end; they share the places."""
POLL_SECONDS = 0.5
CLAIM_SECONDS = 5.0
"""Seconds after which the queue is looked at although nothing has changed: a lease may have run out."""
CLEAR_SECONDS = 60.0
"""Seconds between looks for what can be cleared away."""
BACK_OFF_SECONDS = 30.0
"""Seconds for which a batch that failed here for an outward reason is left to others."""


class BatchRunner:
    """Runs up to MAX_RUNNING batches. `start` and `stop` belong to the gateway's event loop; `clock` is Unix time."""

    def __init__(self, gateway: Gateway, *, clock: Callable[[], float] = time.time) -> None:
        self._gateway, self._clock = gateway, clock
        self._registry = gateway.registry
        self._turns = asyncio.Semaphore(BACKGROUND_AHEAD * gateway.settings.background_slots)
        self.name = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self._running: dict[str, asyncio.Task[None]] = {}
        self._backing_off: dict[str, float] = {}
        self._watch = WorkWatch(gateway.registry.changes, seconds=CLAIM_SECONDS)
        self._cleared = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for batches."""
        self._task = asyncio.create_task(self._run(), name="batches")

    async def stop(self) -> None:
        """Stop; batches that run are given back, with all that has been answered."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while not self._gateway.draining:
                try:
                    await self._clear_away()
                    if self._gateway.settings.batches and self._gateway.engine.ready is not None:
                        await self._start_next()
                except TuneryError as error:
                    log.warning("batches cannot be read now: %s", error)
                except Exception:
                    log.exception("looking for batches failed, and goes on")
                await asyncio.sleep(POLL_SECONDS)
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _clear_away(self) -> None:
        """Now and then, end uploads and forget files whose time is over, and delete what is left of those that ended."""
        now = time.monotonic()
        if now - self._cleared > CLEAR_SECONDS:
            self._cleared = now
            await asyncio.to_thread(self._registry.uploads.expire)
            await asyncio.to_thread(self._registry.batches.remove_leftovers)
            await asyncio.to_thread(self._registry.data_files.expire)

    async def _start_next(self) -> None:
        """Claim batches while there is room for them and there are any."""
        while len(self._running) < MAX_RUNNING and self._watch.due():
            now = time.monotonic()
            self._backing_off = {batch: until for batch, until in self._backing_off.items() if until > now}
            without = frozenset({*self._backing_off, *self._running})
            batch = await asyncio.to_thread(self._registry.batches.claim, self.name, without=without)
            if batch is None:
                self._watch.found_nothing()
                return
            self._running[batch.id] = asyncio.create_task(self._run_batch(batch), name=batch.id)

    async def _run_batch(self, batch: Batch) -> None:
        """Run a batch; whatever goes wrong with it here is logged, and another gateway, or this one later, goes on."""
        run = BatchRun(self._gateway, batch, turns=self._turns, clock=self._clock)
        try:
            await run.run()
        except asyncio.CancelledError:
            with contextlib.suppress(TuneryError):
                await run.release()
            raise
        except Conflict as error:
            log.warning("%s", error)
        except Exception as error:
            log.warning("%s is interrupted: %s", batch.id, error, exc_info=not isinstance(error, TuneryError))
            self._backing_off[batch.id] = time.monotonic() + BACK_OFF_SECONDS
            with contextlib.suppress(TuneryError):
                await run.release()
        finally:
            del self._running[batch.id]
