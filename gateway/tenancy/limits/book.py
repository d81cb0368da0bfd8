"""The limits of every tenant and key, in memory, and read again when something was committed."""

from __future__ import annotations

import msgspec

from tunery.gateway.tenancy.registry_watch import RegistryWatch
from tunery.registry.configuration.limits import Limits, LimitsSettings
from tunery.registry.limits.overrides import Override
from tunery.registry.registry import Registry

__all__ = ["LimitBook"]

NONE = Limits()


class LimitBook:
    """The configured limits, and those that were set for tenants and keys. `start` and `stop` belong to the gateway's
    event loop; before `start` the configured ones hold. They go on to hold while the registry cannot be read."""

    def __init__(self, registry: Registry, settings: LimitsSettings) -> None:
        self._registry = registry
        named = msgspec.structs.asdict(settings)
        self._default = Limits(**{field.name: named[field.name] for field in msgspec.structs.fields(Limits)})
        self._set: dict[tuple[str, str], Override] = {}
        self._known: dict[tuple[str, str], Limits] = {}
        self._watch = RegistryWatch(registry, self._read, what="limits")

    async def start(self) -> None:
        """Read the limits, and again whenever something was committed; raise what reading raises the first time."""
        await self._watch.start()

    async def stop(self) -> None:
        """Read no more."""
        await self._watch.stop()

    def of_tenant(self, tenant: str) -> Limits:
        """A tenant's limits."""
        return self._of(tenant, "", self._default)

    def of_key(self, tenant: str, key: str | None) -> Limits:
        """The limits of one of its keys, which count besides the tenant's; none where none were set for it."""
        return self._of(tenant, key, NONE) if key else NONE

    def _of(self, tenant: str, key: str, otherwise: Limits) -> Limits:
        override = self._set.get((tenant, key))
        if override is None:
            return otherwise
        if (tenant, key) not in self._known:
            self._known[tenant, key] = override.over(otherwise)
        return self._known[tenant, key]

    def _read(self) -> None:
        self._set, self._known = self._registry.limits.all(), {}
