"""The one writer of a gateway's usage: what was recorded is written together, at most every FLUSH_SECONDS.

A kill loses what was recorded since then. While the disk fails, records are kept and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from tunery.gateway.tenancy.usage.month import MonthTokens
from tunery.registry.errors import TuneryError
from tunery.registry.usage.records import UsageRecord
from tunery.registry.usage.usage import MonthTotals, Usage

__all__ = ["UsageWriter"]

log = logging.getLogger("tunery.gateway")

FLUSH_SECONDS = 0.5
FORGET_SECONDS = 3600.0
"""Seconds between looks for records whose time is over."""
MOST = 500_000
"""Records that wait at most: hours of a disk that fails. The oldest are given up then."""
SECONDS_PER_DAY = 86_400


class UsageWriter:
    """Writes what is added. `start` and `stop` belong to the gateway's event loop; before `start`, what is added is
    forgotten, since a command that answers for itself has no tenants. `clock` is Unix time in seconds."""

    def __init__(self, usage: Usage, *, days: int, clock: Callable[[], float] = time.time) -> None:
        self._usage, self._days, self._clock = usage, days, clock
        self.month = MonthTokens()
        self._waiting: list[UsageRecord] = []
        self._unread: list[UsageRecord] = []
        """Records that are written, and that `month` has not read back."""
        self._task: asyncio.Task[None] | None = None
        self._forgotten = float("-inf")
        self._failing = False
        self._flushing = asyncio.Lock()

    async def start(self) -> None:
        """Read what this month has seen, and write from now on; raise what reading raises."""
        self.month.apply(await asyncio.to_thread(self.month.read, self._usage, self._clock()), ())
        self._task = asyncio.create_task(self._run(), name="usage")

    async def stop(self) -> None:
        """Write what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self.flush()

    def now(self) -> float:
        """The time that records have."""
        return self._clock()

    def add(self, *records: UsageRecord) -> None:
        """Have records written soon."""
        if self._task is None:
            return
        for record in records:
            self._waiting.append(record)
            self.month.note(record)
        if (more := len(self._waiting) - MOST) > 0:
            log.error("usage could not be written for long: the oldest %d records are given up", more)
            self.month.forget(self._waiting[:more])
            del self._waiting[:more]

    async def flush(self) -> None:
        """Write what waits, and learn what others have written; a failure is logged once, and tried again.

        Once begun it goes on in the background where this is cancelled: what is being written must be known as written.
        """
        await asyncio.shield(asyncio.create_task(self._flush()))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def _flush(self) -> None:
        async with self._flushing:
            records, self._waiting = self._waiting, []
            try:
                read = await asyncio.to_thread(self._write, records)
            except Exception as error:
                self._waiting = records + self._waiting
                if not self._failing:
                    log.warning(
                        "usage cannot be written now, it is kept: %s",
                        error,
                        exc_info=not isinstance(error, TuneryError),
                    )
                self._failing = True
                return
            self._failing = False
            self._unread += records
            if read is not None:
                self.month.apply(read, self._unread)
                self._unread = []

    def _write(self, records: Sequence[UsageRecord]) -> tuple[float, MonthTotals, bool] | None:
        """Write records; returns what the month has seen then, None where that cannot be read."""
        self._usage.add(records)
        now, elapsed = self._clock(), time.monotonic()
        # What is written is not written again because something after it fails.
        with contextlib.suppress(TuneryError):
            if elapsed - self._forgotten > FORGET_SECONDS:
                self._forgotten = elapsed
                self._usage.forget(before=now - self._days * SECONDS_PER_DAY)
            return self.month.read(self._usage, now)
        return None
