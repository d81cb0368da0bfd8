"""The issuer's keys in memory, read again from time to time and when a token names one that is not known.

However many tokens name unknown keys, the issuer is asked at most once in `cooldown_seconds`. While it cannot be
reached, the keys that are known stay good.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Protocol

from tunery.gateway.tenancy.oidc.key_set import KeySet, SigningKey
from tunery.registry.errors import Unavailable

__all__ = ["KeySource", "SigningKeys"]

log = logging.getLogger("tunery.gateway")

WAIT_SECONDS = 2.0
"""Seconds that a request may wait for the issuer's answer."""
MAX_BACKOFF = 60.0
MAX_TEXT = 500


class KeySource(Protocol):
    """Where the keys are."""

    async def fetch_keys(self) -> KeySet:
        """The keys now; raise Unavailable."""

    async def close(self) -> None:
        """Close what is open."""


class SigningKeys:
    """The keys of an issuer, called `name` in the log; `clock` never jumps."""

    def __init__(
        self,
        source: KeySource,
        *,
        name: str,
        refresh_seconds: float,
        cooldown_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._source, self._name, self._clock = source, name, clock
        self._refresh_seconds, self._cooldown_seconds = refresh_seconds, cooldown_seconds
        self._random = rng or random.SystemRandom()
        self._not_before = clock()
        """When a token with an unknown key may make the issuer be asked again."""
        self._fetching: asyncio.Task[bool] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._failing = False
        self.current: KeySet | None = None
        """None until the issuer has answered."""

    async def start(self) -> None:
        """Ask for the keys, now and then again, without waiting for the first answer."""
        self._watching = asyncio.create_task(self._watch(self._fetch()), name="oidc keys")

    async def stop(self) -> None:
        """Ask no more."""
        tasks = [task for task in (self._watching, self._fetching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._source.close()

    async def find(self, key_id: str | None, algorithm: str) -> SigningKey | None:
        """The key that a token names; ask the issuer, within limits, for one that is not known."""
        key = self._known(key_id, algorithm)
        if key is None and (fetching := self._look()) is not None:
            await asyncio.wait((fetching,), timeout=WAIT_SECONDS)
            key = self._known(key_id, algorithm)
        return key

    def _known(self, key_id: str | None, algorithm: str) -> SigningKey | None:
        return self.current.find(key_id, algorithm) if self.current is not None else None

    def _look(self) -> asyncio.Task[bool] | None:
        """The fetch that is under way, or a new one; None where it is too early for that."""
        if self._fetching is None or self._fetching.done():
            if self._clock() < self._not_before:
                return None
            self._not_before = self._clock() + self._cooldown_seconds
            return self._fetch()
        return self._fetching

    def _fetch(self) -> asyncio.Task[bool]:
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._read(), name="oidc fetch")
        return self._fetching

    async def _watch(self, fetching: asyncio.Task[bool]) -> None:
        failures = 0
        while True:
            failures = 0 if await fetching else failures + 1
            seconds = self._refresh_seconds if not failures else min(2.0 ** (failures - 1), self._refresh_seconds)
            # Servers that were started together should not ask together.
            await asyncio.sleep(self._random.uniform(0.9, 1.0) * (min(seconds, MAX_BACKOFF) if failures else seconds))
            fetching = self._fetch()

    async def _read(self) -> bool:
        """Read the keys; False where that failed, which is logged once until it succeeds again."""
        try:
            self.current = await self._source.fetch_keys()
        except Exception as error:
            if not self._failing:
                state = "its known keys stay good" if self.current is not None else "its tokens cannot be checked yet"
                log.warning("the issuer %s cannot be asked for its keys, %s: %s", self._name, state, _text(error))
            self._failing = True
            return False
        if self._failing:
            log.warning("the issuer %s answers again", self._name)
        self._failing = False
        return True


def _text(error: Exception) -> str:
    return (error.message if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}")[:MAX_TEXT]
