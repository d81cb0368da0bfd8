"""The keys in memory: every request is checked without the database, which is read again when something was committed.

A known key is good while the database cannot be reached; one that was revoked meanwhile too, until it can.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from tunery.gateway.tenancy.principal import Principal
from tunery.registry.keys.api_key import ApiKey, matches, split_token
from tunery.registry.registry import Registry

__all__ = ["Keyring"]

log = logging.getLogger("tunery.gateway")

REFRESH_SECONDS = 0.25
"""Seconds between looks for keys that were created or revoked by any process."""
WAIT_SECONDS = 2.0
"""Seconds that a request with an unknown key may wait for that look, which a disk may delay."""


class Keyring:
    """A CredentialStore: the keys of a registry, and a server's own. `start` and `stop` belong to the gateway's event loop; `clock` is Unix time in seconds."""

    def __init__(
        self, registry: Registry, *, own_key: ApiKey | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._registry, self._clock = registry, clock
        self._own = (own_key,) if own_key else ()
        self._keys: dict[str, ApiKey] = {}
        self._changes = -1
        self._next: asyncio.Future[None] | None = None
        """Done when the next look for keys has ended."""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the keys, and again whenever something was committed; raise what reading raises the first time."""
        await asyncio.to_thread(self._read)
        self._next = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._watch(), name="keys")

    async def stop(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def find(self, token: str) -> Principal | None:
        """Whose active key a token belongs to; None for any other token, in the same time."""
        key_id, secret = split_token(token) or ("", "")
        if key_id and key_id not in self._keys and self._next is not None:
            # It may just have been created. However many ask for unknown ones, there are no more looks than there are.
            await asyncio.wait((self._next,), timeout=WAIT_SECONDS)
        key = self._keys.get(key_id)
        right = matches(key, secret)
        return Principal.of(key) if right and key is not None and key.state(self._clock()) == "active" else None

    async def _watch(self) -> None:
        unreadable = False
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            done, self._next = self._next, asyncio.get_running_loop().create_future()
            try:
                await asyncio.to_thread(self._read)
                unreadable = False
            except Exception as error:
                if not unreadable:
                    log.warning("keys cannot be read now, those that are known stay good: %s", error)
                unreadable = True
            finally:
                if done is not None:
                    done.set_result(None)

    def _read(self) -> None:
        """Read all keys unless nothing was committed since the last time."""
        changes = self._registry.changes()
        if changes != self._changes:
            self._keys = {key.id: key for key in (*self._registry.keys.list(), *self._own)}
            self._changes = changes
