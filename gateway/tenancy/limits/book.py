"""The limits of every tenant and key, in memory, and read again when something was committed."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from tunery.registry.configuration.limits import Limits, LimitsSettings
from tunery.registry.errors import TuneryError
from tunery.registry.limits.overrides import Override
from tunery.registry.registry import Registry

__all__ = ["LimitBook"]

log = logging.getLogger("tunery.gateway")

REFRESH_SECONDS = 0.25
"""Seconds between looks for limits that were changed by any process."""
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
        self._changes = -1
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the limits, and again whenever something was committed; raise what reading raises the first time."""
        await asyncio.to_thread(self._read)
        self._task = asyncio.create_task(self._watch(), name="limits")

    async def stop(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

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

    async def _watch(self) -> None:
        unreadable = False
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await asyncio.to_thread(self._read)
                unreadable = False
            except Exception as error:
                if not unreadable:
                    log.warning(
                        "limits cannot be read now, those that are known hold: %s",
                        error,
                        exc_info=not isinstance(error, TuneryError),
                    )
                unreadable = True

    def _read(self) -> None:
        """Read the limits unless nothing was committed since the last time."""
        changes = self._registry.changes()
        if changes != self._changes:
            self._set, self._known = self._registry.limits.all(), {}
            self._changes = changes
