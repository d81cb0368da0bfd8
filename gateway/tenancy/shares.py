"""The shared adapters in memory, read again when something was committed: no request waits for the database.

While it cannot be reached, what was shared stays so, as known keys stay good.
"""

from __future__ import annotations

from tunery.gateway.tenancy.registry_watch import RegistryWatch
from tunery.registry.names import tenant_of
from tunery.registry.registry import Registry
from tunery.registry.sharing.share import EVERYBODY

__all__ = ["SharedAdapters"]

_NONE: frozenset[str] = frozenset()


class SharedAdapters:
    """Which adapters are shared with a tenant; `start` and `stop` belong to the gateway's event loop.

    `read` may be called on another thread than the rest.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._with: dict[str, frozenset[str]] = {}
        self._with_shared_prefixes = _NONE
        self._watch = RegistryWatch(registry, self.read, what="shared adapters")

    async def start(self) -> None:
        """Read them, and again whenever something was committed; raise what reading raises the first time."""
        await self._watch.start()

    async def stop(self) -> None:
        """Read no more."""
        await self._watch.stop()

    def read(self) -> None:
        """Read all of them."""
        adapters: dict[str, set[str]] = {}
        shares = self._registry.sharing.all()
        for share in shares:
            for tenant in share.tenants:
                adapters.setdefault(tenant, set()).add(share.adapter)
        self._with = {tenant: frozenset(names) for tenant, names in adapters.items()}
        self._with_shared_prefixes = frozenset(share.adapter for share in shares if share.share_prefixes)

    def covers(self, tenant: str, adapter: str) -> bool:
        """Whether another tenant shares an adapter with this one."""
        shared = self._with
        if tenant_of(adapter) == tenant:
            return False
        return adapter in shared.get(tenant, _NONE) or adapter in shared.get(EVERYBODY, _NONE)

    def shares_prefixes(self, adapter: str) -> bool:
        """Whether all who ask an adapter use one prefix cache for it."""
        return adapter in self._with_shared_prefixes
