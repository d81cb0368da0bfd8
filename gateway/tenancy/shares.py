"""The shared adapters in memory, read again when something was committed: no request waits for the database.

While it cannot be reached, what was shared stays so, as known keys stay good.
"""

from __future__ import annotations

import asyncio
import logging

from tunery.registry.names import tenant_of
from tunery.registry.registry import Registry
from tunery.registry.sharing.share import EVERYBODY

__all__ = ["SharedAdapters"]

log = logging.getLogger("tunery.gateway")

REFRESH_SECONDS = 0.25
"""Seconds between looks for what any process has shared or unshared."""
_NONE: frozenset[str] = frozenset()


class SharedAdapters:
    """Which adapters are shared with a tenant; `start` and `stop` belong to the gateway's event loop.

    `read` may be called on another thread than the rest.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._with: dict[str, frozenset[str]] = {}
        self._with_shared_prefixes = _NONE
        self._changes = -1
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read them, and again whenever something was committed; raise what reading raises the first time."""
        await asyncio.to_thread(self.read)
        self._task = asyncio.create_task(self._watch(), name="shared adapters")

    async def stop(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        unreadable = False
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self._read_in_thread()
                unreadable = False
            except Exception as error:
                if not unreadable:
                    log.warning("shared adapters cannot be read now, they stay as they were: %s", error)
                unreadable = True

    async def _read_in_thread(self) -> None:
        """Read; where this is cancelled it ends only after the thread, as the registry may be closed afterwards."""
        reading = asyncio.create_task(asyncio.to_thread(self.read))
        try:
            await asyncio.shield(reading)
        except asyncio.CancelledError:
            await asyncio.gather(reading, return_exceptions=True)
            raise

    def read(self) -> None:
        """Read all of them unless nothing was committed since the last time."""
        changes = self._registry.changes()
        if changes == self._changes:
            return
        adapters: dict[str, set[str]] = {}
        shares = self._registry.sharing.all()
        for share in shares:
            for tenant in share.tenants:
                adapters.setdefault(tenant, set()).add(share.adapter)
        self._with = {tenant: frozenset(names) for tenant, names in adapters.items()}
        self._with_shared_prefixes = frozenset(share.adapter for share in shares if share.share_prefixes)
        self._changes = changes

    def covers(self, tenant: str, adapter: str) -> bool:
        """Whether another tenant shares an adapter with this one."""
        shared = self._with
        if tenant_of(adapter) == tenant:
            return False
        return adapter in shared.get(tenant, _NONE) or adapter in shared.get(EVERYBODY, _NONE)

    def shares_prefixes(self, adapter: str) -> bool:
        """Whether all who ask an adapter use one prefix cache for it."""
        return adapter in self._with_shared_prefixes
