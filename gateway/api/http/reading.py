"""Where long texts are read: on a few threads, so that nobody else's tokens wait for them, and only as long as the client does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tunery.gateway.api.http.admission import Busy

__all__ = ["Abandoned", "Readers"]

T = TypeVar("T")

SHORT = 2_000
"""Bytes of a body that are read at once; to hand over to a thread would take longer."""
THREADS = 2
MOST = 64
"""Texts that are read or wait for it."""


class Abandoned(Exception):
    """Nobody waits any more for what is being read."""


class Readers:
    """The threads."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="reading")
        self._room = threading.BoundedSemaphore(MOST)

    async def run(self, size: int, read: Callable[[Callable[[], None]], T]) -> T:
        """The result of `read`, which takes in `size` bytes and calls what it is given now and then; that raises Abandoned
        once this is cancelled. Raise Busy where too much is being read."""
        if size <= SHORT:
            return read(lambda: None)
        if not self._room.acquire(blocking=False):
            raise Busy(f"{MOST} long texts are being read, which is the most", retry_after=1)
        left = threading.Event()

        def still_wanted() -> None:
            if left.is_set():
                raise Abandoned

        reading = self._pool.submit(read, still_wanted)
        reading.add_done_callback(lambda _: self._room.release())
        try:
            return await asyncio.wrap_future(reading)
        finally:
            left.set()

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
