"""How many requests are in flight, in all and for each tenant: in this process, or in all that share an engine."""

from __future__ import annotations

import hashlib
import math
import mmap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

__all__ = ["LocalPlaces", "Places", "SharedPlaces"]


class Places(Protocol):
    """The requests in flight. Seconds are those of a clock that never jumps."""

    @property
    def count(self) -> int:
        """How many there are."""

    def of(self, tenant: str) -> int:
        """How many are a tenant's."""

    def change(self, count: int, tenant: str) -> None:
        """Add `count` of a tenant's, which may be negative."""

    def since_another(self, tenant: str) -> float:
        """Seconds since another tenant sent a request; notes that this one does now."""


class LocalPlaces:
    """Those of this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_tenant: Counter[str] = Counter()
        self._last_request: dict[str, float] = {}
        self.count = 0

    def of(self, tenant: str) -> int:
        """See Places.of."""
        return self._by_tenant[tenant]

    def change(self, count: int, tenant: str) -> None:
        """See Places.change."""
        self.count += count
        self._by_tenant[tenant] += count
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]

    def since_another(self, tenant: str) -> float:
        """See Places.since_another."""
        now = self._clock()
        self._last_request.pop(tenant, None)
        # The latest come last, so the last entry is the other tenant to look at.
        other = next(reversed(self._last_request.values()), -math.inf)
        self._last_request[tenant] = now
        return now - other


SLOTS = 1 << 18
"""Places for tenants, by a hash of their names: two that share one count as one, which is rare and only stricter."""
_HEADER = 8
"""8-byte words before the slots: the sum, then tenant and time of the latest request and of the latest by another."""
_SUM, _LATEST, _LATEST_AT, _OTHER, _OTHER_AT = range(5)
NANOSECONDS = 1_000_000_000


class SharedPlaces:
    """Those of all processes that share a file; this one is number `worker` of `workers`.

    Each writes a row of its own and adds up those of all, so no lock is needed. `clear` frees what a process that was
    killed has left behind.
    """

    def __init__(self, path: Path, *, worker: int, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        words = workers * (_HEADER + SLOTS)
        with path.open("a+b") as file:
            file.truncate(8 * words)
            self._map = mmap.mmap(file.fileno(), 8 * words)
        self._words = memoryview(self._map).cast("q")
        self._rows = [at * (_HEADER + SLOTS) for at in range(workers)]
        self._own = self._rows[worker]

    @property
    def count(self) -> int:
        """See Places.count."""
        return sum(self._words[row + _SUM] for row in self._rows)

    def of(self, tenant: str) -> int:
        """See Places.of."""
        slot = _HEADER + _slot(tenant)
        return sum(self._words[row + slot] for row in self._rows)

    def change(self, count: int, tenant: str) -> None:
        """See Places.change."""
        self._words[self._own + _SUM] += count
        self._words[self._own + _HEADER + _slot(tenant)] += count

    def since_another(self, tenant: str) -> float:
        """See Places.since_another."""
        words, own, me = self._words, self._own, _slot(tenant) + 1
        now = int(self._clock() * NANOSECONDS)
        latest = 0
        for row in self._rows:
            for who, at in ((_LATEST, _LATEST_AT), (_OTHER, _OTHER_AT)):
                if words[row + who] not in (0, me):
                    latest = max(latest, words[row + at])
        if words[own + _LATEST] not in (0, me):
            words[own + _OTHER], words[own + _OTHER_AT] = words[own + _LATEST], words[own + _LATEST_AT]
        words[own + _LATEST], words[own + _LATEST_AT] = me, now
        return (now - latest) / NANOSECONDS if latest else math.inf

    def clear(self) -> None:
        """Forget this process's requests: it has just started in the place of another."""
        self._map[8 * self._own : 8 * (self._own + _HEADER + SLOTS)] = bytes(8 * (_HEADER + SLOTS))

    def close(self) -> None:
        """Release the memory."""
        self._words.release()
        self._map.close()


def _slot(tenant: str) -> int:
    return int.from_bytes(hashlib.blake2b(tenant.encode(), digest_size=4).digest(), "little") % SLOTS
