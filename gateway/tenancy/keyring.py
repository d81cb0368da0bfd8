"""The keys in memory: every request is checked without the database, which is read again when something was committed.

A known key is good while the database cannot be reached; one that was revoked meanwhile too, until it can.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from tunery.registry.errors import TuneryError
from tunery.registry.keys.api_key import ApiKey, matches, split_token
from tunery.registry.registry import Registry

__all__ = ["Keyring"]

log = logging.getLogger("tunery.gateway")

REFRESH_SECONDS = 0.25
"""Seconds between looks for keys that were created or revoked by any process."""


class Keyring:
    """The keys of a registry. `start` and `stop` belong to the gateway's event loop; `clock` is Unix time in seconds."""

    def __init__(self, registry: Registry, *, clock: Callable[[], float] = time.time) -> None:
        self._registry, self._clock = registry, clock
        self._keys: dict[str, ApiKey] = {}
        self._changes = -1
        self._reading = asyncio.Lock()
        self._read_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the keys, and again whenever something was committed; raise what reading raises the first time."""
        await asyncio.to_thread(self._read)
        self._task = asyncio.create_task(self._watch(), name="keys")

    async def stop(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def find(self, token: str) -> ApiKey | None:
        """The active key that a token belongs to; None for any other token, in the same time."""
        key_id, secret = split_token(token) or ("", "")
        if key_id and key_id not in self._keys:
            await self._read_soon()
        key = self._keys.get(key_id)
        right = matches(key, secret)
        return key if right and key is not None and key.state(self._clock()) == "active" else None

    async def _read_soon(self) -> None:
        """Look for a key that may just have been created; unknown ids cause no more reads than the watch does."""
        async with self._reading:
            if time.monotonic() - self._read_at > REFRESH_SECONDS:
                with contextlib.suppress(TuneryError):
                    await asyncio.to_thread(self._read)

    async def _watch(self) -> None:
        unreadable = False
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                async with self._reading:
                    await asyncio.to_thread(self._read)
                unreadable = False
            except Exception as error:
                if not unreadable:
                    log.warning("keys cannot be read now, those that are known stay good: %s", error)
                unreadable = True

    def _read(self) -> None:
        """Read all keys unless nothing was committed since the last time."""
        changes = self._registry.changes()
        if changes != self._changes:
            self._keys = {key.id: key for key in self._registry.keys.list()}
            self._changes = changes
        self._read_at = time.monotonic()
