"""Bounds the memory of request bodies, all together, and hands what a large one needed back to the system."""

from __future__ import annotations

import asyncio
import gc

from tunery.plugins.runtime.allocator import trim_memory
from tunery.registry.errors import Overloaded

__all__ = ["MAX_BODIES", "BodyMemory"]

MAX_BODIES = 256 * 2**20
"""Bytes of all bodies in hand."""
LARGE = 2**20
"""Bytes of a body after which memory is handed back: reading it took several times that."""
TIDY_AFTER = 1.0
"""Seconds from the end of a large request until then, so that many of them cost one tidying."""


class BodyMemory:
    """Counts the bodies in hand."""

    def __init__(self) -> None:
        self._bytes = 0
        self._tidying: asyncio.Task[None] | None = None

    def take(self, count: int) -> None:
        """Hold `count` more bytes; raises Overloaded when that is too much now."""
        if self._bytes + count > MAX_BODIES:
            raise Overloaded(
                f"the bodies of all requests in hand may take {MAX_BODIES // 2**20} MB; try again when others have ended"
            )
        self._bytes += count

    def release(self, count: int) -> None:
        """A request that held `count` bytes in all has ended."""
        self._bytes -= count
        if count >= LARGE and (self._tidying is None or self._tidying.done()):
            self._tidying = asyncio.create_task(_tidy(), name="tidy-memory")


async def _tidy() -> None:
    await asyncio.sleep(TIDY_AFTER)
    # Errors hold on to the frames they passed, and with them to bodies, in cycles.
    gc.collect()
    await asyncio.to_thread(trim_memory)
