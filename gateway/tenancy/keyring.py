"""The keys in memory: every request is checked without the database, which is read again when something was committed.

A known key is good while the database cannot be reached; one that was revoked meanwhile too, until it can.
"""

from __future__ import annotations

from collections.abc import Callable

from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.registry_watch import RegistryWatch
from tunery.gateway.tenancy.steady_clock import SteadyClock
from tunery.registry.keys.api_key import ApiKey, matches, split_token
from tunery.registry.registry import Registry

__all__ = ["Keyring"]

EXPIRING_SECONDS = 14 * 86_400.0
"""Seconds before its end from which a key counts as expiring."""
WAIT_SECONDS = 2.0
"""Seconds that a request with an unknown key may wait for that look, which a disk may delay."""


class Keyring:
    """A CredentialStore: the keys of a registry, and a server's own. `start` and `stop` belong to the gateway's event loop;
    `clock` is Unix time in seconds."""

    def __init__(
        self, registry: Registry, *, own_key: ApiKey | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        self._registry, self._clock = registry, clock or SteadyClock()
        self._own = (own_key,) if own_key else ()
        self._keys: dict[str, ApiKey] = {}
        self._watch = RegistryWatch(registry, self._read, what="keys")

    async def start(self) -> None:
        """Read the keys, and again whenever something was committed; raise what reading raises the first time."""
        await self._watch.start()

    async def stop(self) -> None:
        """Read no more."""
        await self._watch.stop()

    @property
    def age(self) -> float:
        """Seconds since the keys were last known to be those of the registry."""
        return self._watch.age

    def states(self) -> dict[str, int]:
        """How many keys are in each state; `expiring` are those that are active, were not replaced, and end soon."""
        now = self._clock()
        counts = dict.fromkeys(("active", "expiring", "expired", "revoked"), 0)
        for key in list(self._keys.values()):
            state: str = key.state(now)
            ends = key.expires_at is not None and key.replaced_by is None and key.expires_at - now < EXPIRING_SECONDS
            counts["expiring" if state == "active" and ends else state] += 1
        return counts

    async def find(self, token: str) -> Principal | None:
        """Whose active key a token belongs to; None for any other token, in the same time."""
        key_id, secret = split_token(token) or ("", "")
        if key_id and key_id not in self._keys:  # it may just have been created
            await self._watch.next_look(timeout=WAIT_SECONDS)
        key = self._keys.get(key_id)
        right = matches(key, secret)
        return Principal.of(key) if right and key is not None and key.state(self._clock()) == "active" else None

    def _read(self) -> None:
        self._keys = {key.id: key for key in (*self._registry.keys.list(), *self._own)}
