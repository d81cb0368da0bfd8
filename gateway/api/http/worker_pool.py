"""Runs work that grows with a request's size (tokenizing, log-probabilities) on a few threads, off the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tunery.gateway.api.http.admission import Busy

__all__ = ["Abandoned", "WorkerPool"]

T = TypeVar("T")

INLINE_SIZE = 2_000
"""Work up to this size (about bytes of text) runs at once; handing it to a thread would take longer."""
THREADS = 2
MAX_PENDING = 64
"""Pieces of work that run or wait for a thread."""


class Abandoned(Exception):
    """Nobody waits for the result any more."""


class WorkerPool:
    """A bounded pool of threads whose work stops soon after its caller has gone."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="worker")
        self._slots = threading.BoundedSemaphore(MAX_PENDING)

    async def run(self, size: int, work: Callable[[Callable[[], None]], T]) -> T:
        """Return the result of `work`, which handles about `size` bytes.

        `work` calls its argument now and then; that raises Abandoned once this coroutine has been cancelled. Raises
        Busy when too much work is pending.
        """
        if size <= INLINE_SIZE:
            return work(lambda: None)
        if not self._slots.acquire(blocking=False):
            raise Busy(f"{MAX_PENDING} long texts are being processed, which is the limit", retry_after=1)
        cancelled = threading.Event()

        def check_wanted() -> None:
            if cancelled.is_set():
                raise Abandoned

        future = self._pool.submit(work, check_wanted)
        future.add_done_callback(lambda _: self._slots.release())
        try:
            return await asyncio.wrap_future(future)
        finally:
            cancelled.set()

    def close(self) -> None:
        """Drop pending work and let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
