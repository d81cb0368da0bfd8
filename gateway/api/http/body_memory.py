"""Limits the memory of all request bodies together, and returns a large body's memory to the operating system."""

from __future__ import annotations

import asyncio
import gc

from tunery.plugins.runtime.allocator import trim_memory
from tunery.registry.errors import Overloaded

__all__ = ["MAX_BODIES", "BodyMemory"]

MAX_BODIES = 256 * 2**20
"""Bytes of all bodies held at once."""
LARGE = 2**20
"""Bytes of a body that makes returning memory worthwhile: parsing it took several times as much."""
TIDY_AFTER = 1.0
"""Seconds from the end of a large request until memory is returned, so that many of them are handled at once."""


class BodyMemory:
    """Counts the bytes of the bodies held."""

    def __init__(self) -> None:
        self._bytes = 0
        self._tidying: asyncio.Task[None] | None = None

    def take(self, count: int) -> None:
        """Hold `count` more bytes; raise Overloaded when that exceeds the limit."""
        if self._bytes + count > MAX_BODIES:
            raise Overloaded(
                f"the bodies of all requests in flight may take {MAX_BODIES // 2**20} MB together; try again later"
            )
        self._bytes += count

    def release(self, count: int) -> None:
        """Release the `count` bytes that a request held in all."""
        self._bytes -= count
        if count >= LARGE and (self._tidying is None or self._tidying.done()):
            self._tidying = asyncio.create_task(_tidy(), name="tidy-memory")


async def _tidy() -> None:
    await asyncio.sleep(TIDY_AFTER)
    # Exceptions keep their frames alive, and with them bodies, in reference cycles.
    gc.collect()
    await asyncio.to_thread(trim_memory)
