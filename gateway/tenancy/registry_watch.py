"""Follow what any process commits to the registry, so that what every request needs is in memory.

While the registry cannot be read, what is known holds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

from tunery.registry.errors import StorageFailed, TuneryError
from tunery.registry.registry import Registry

__all__ = ["RegistryWatch"]

log = logging.getLogger("tunery.gateway")

LOOK_SECONDS = 0.25
"""Seconds between looks for something that was committed."""


class RegistryWatch:
    """Calls `read`, in a thread, when it starts and after each look that finds something committed; `what` names it in the
    log. `start`, `stop` and `next_look` belong to the gateway's event loop."""

    def __init__(self, registry: Registry, read: Callable[[], None], *, what: str) -> None:
        self._registry, self._read, self._what = registry, read, what
        self._changes = -1
        self._looked_at = -math.inf
        self._next: asyncio.Future[None] | None = None
        """Done when the look that begins next has ended."""
        self._task: asyncio.Task[None] | None = None

    @property
    def age(self) -> float:
        """Seconds since what is known was last found to be what the registry has."""
        return time.monotonic() - self._looked_at

    async def start(self) -> None:
        """Read now, and go on looking; raise what reading raises the first time."""
        await asyncio.to_thread(self.look)
        self._next = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._watch(), name=self._what)

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def next_look(self, *, timeout: float) -> None:
        """Wait for the end of a look that begins from now on, so many seconds at most. However many wait, there are no
        more looks than there are."""
        if self._next is not None:
            await asyncio.wait((self._next,), timeout=timeout)

    def look(self) -> None:
        """Read unless nothing was committed since the last time; raise where others may commit elsewhere by now."""
        if self._registry.database.is_replaced():
            raise StorageFailed("the registry was removed or replaced: restart this server", code="registry_replaced")
        changes = self._registry.changes()
        if changes != self._changes:
            self._read()
            self._changes = changes
        self._looked_at = time.monotonic()

    async def _watch(self) -> None:
        readable = True
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            done, self._next = self._next, asyncio.get_running_loop().create_future()
            try:
                await self._look_in_thread()
                readable = True
            except Exception as error:
                if readable:
                    unexpected = not isinstance(error, TuneryError)
                    log.warning(
                        "%s cannot be read now, what is known holds: %s", self._what, error, exc_info=unexpected
                    )
                readable = False
            finally:
                if done is not None:
                    done.set_result(None)

    async def _look_in_thread(self) -> None:
        """Look; where this is cancelled it ends only after the thread, as the registry may be closed afterwards."""
        looking = asyncio.create_task(asyncio.to_thread(self.look))
        try:
            await asyncio.shield(looking)
        except asyncio.CancelledError:
            await asyncio.gather(looking, return_exceptions=True)
            raise
