"""Owns which adapters are in memory, under a hard byte budget; refuses to make the step loop wait for a disk.

Loads happen once each on a thread. Whoever runs on an adapter holds it; what nobody holds may be evicted, least recently
used first. All methods are called from the step loop's thread; only the loading itself is elsewhere.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tunery.gateway.engine.adapter import WEIGHTS, LoadedAdapter
from tunery.gateway.engine.messages import AdapterSource, Resident
from tunery.registry.errors import TuneryError, Unavailable

__all__ = ["Residency"]


class _Loading:
    def __init__(self, source: AdapterSource, reserved: int, future: Future[LoadedAdapter], started: float) -> None:
        self.source, self.reserved, self.future, self.started = source, reserved, future, started


class Residency:
    """Adapters by digest: resident, loading, or neither.

    `load` reads an adapter's weights (called on a thread); `stretch` is how many bytes in memory one byte on disk becomes.
    """

    def __init__(
        self,
        budget: int,
        load: Callable[[AdapterSource], LoadedAdapter],
        *,
        stretch: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget = budget
        self._load = load
        self._stretch = stretch
        self._clock = clock
        self._resident: OrderedDict[str, LoadedAdapter] = OrderedDict()
        self._holders: Counter[str] = Counter()
        self._loading: dict[str, _Loading] = {}
        self._failed: dict[str, TuneryError] = {}
        self._doomed: set[str] = set()
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-load")
        self.loads: Counter[str] = Counter()
        self.load_failures: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.load_seconds: list[tuple[str, float]] = []

    @property
    def bytes(self) -> int:
        """Memory of what is resident, plus what is set aside for loads under way."""
        held = sum(adapter.bytes for adapter in self._resident.values())
        return held + sum(loading.reserved for loading in self._loading.values())

    @property
    def busy(self) -> bool:
        """Whether a load is under way."""
        return bool(self._loading)

    def resident(self) -> list[Resident]:
        """What is in memory, least recently used first."""
        return [
            Resident(digest, adapter.source.name, adapter.source.number, adapter.bytes, self._holders[digest])
            for digest, adapter in self._resident.items()
        ]

    def hold(self, source: AdapterSource, *, hit: bool = True) -> LoadedAdapter | None:
        """Take the adapter for a request that starts now, or see to its loading and return None.

        `hit` says that the caller has not waited for it before. Raises the TuneryError that its loading ended with, once per failed load, so that a later request tries anew.
        """
        digest = source.digest
        if digest in self._failed:
            raise self._failed.pop(digest)
        adapter = self._resident.get(digest)
        if adapter is None:
            self._begin(source)
            return None
        self._resident.move_to_end(digest)
        self._holders[digest] += 1
        self._doomed.discard(digest)
        self.hits[source.name] += hit
        return adapter

    def release(self, digest: str) -> None:
        """A holder is done; an adapter that was told to go goes with its last holder."""
        self._holders[digest] -= 1
        if self._holders[digest] <= 0:
            del self._holders[digest]
            if digest in self._doomed:
                self._doomed.discard(digest)
                self._resident.pop(digest, None)

    def unload(self, digest: str) -> int:
        """Free an adapter now, or when its last holder is done; return its bytes (0 when it is not resident)."""
        adapter = self._resident.get(digest)
        if adapter is None:
            return 0
        if self._holders[digest] > 0:
            self._doomed.add(digest)
        else:
            del self._resident[digest]
        return adapter.bytes

    def poll(self) -> bool:
        """Take in the loads that have finished; return whether anything changed."""
        done = [loading for loading in self._loading.values() if loading.future.done()]
        for loading in done:
            del self._loading[loading.source.digest]
            self._finish(loading)
        return bool(done)

    def is_resident(self, digest: str) -> bool:
        """Whether the adapter can be held at once."""
        return digest in self._resident

    def close(self) -> None:
        """Stop loading."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, source: AdapterSource) -> None:
        """Start a load if it is not under way and room can be made for it; else leave things for a later call."""
        if source.digest in self._loading:
            return
        needed = int(self._size(source) * self._stretch)
        if needed > self.budget:
            raise Unavailable(
                f"{source.name}@{source.number} needs {needed:,} bytes and the adapter budget is {self.budget:,}: "
                "raise adapter_budget_mb",
                code="adapter_too_large",
            )
        if self._make_room(needed):
            future = self._threads.submit(self._load, source)
            self._loading[source.digest] = _Loading(source, needed, future, self._clock())

    def _make_room(self, needed: int) -> bool:
        """Evict unheld adapters, oldest first, until `needed` bytes fit; evict nothing when they cannot."""
        idle = [digest for digest in self._resident if self._holders[digest] <= 0]
        spare = self.budget - self.bytes
        if spare + sum(self._resident[digest].bytes for digest in idle) < needed:
            return False
        for digest in idle:
            if spare >= needed:
                break
            adapter = self._resident.pop(digest)
            spare += adapter.bytes
            self.evictions[adapter.source.name] += 1
        return True

    def _finish(self, loading: _Loading) -> None:
        name = loading.source.name
        try:
            adapter = loading.future.result()
        except TuneryError as error:
            self._failed[loading.source.digest] = error
            self.load_failures[name] += 1
            return
        except Exception as error:  # a load must never end the step loop
            self._failed[loading.source.digest] = Unavailable(f"loading {name} failed: {type(error).__name__}: {error}")
            self.load_failures[name] += 1
            return
        self._resident[loading.source.digest] = adapter
        self.loads[name] += 1
        self.load_seconds.append((name, self._clock() - loading.started))

    @staticmethod
    def _size(source: AdapterSource) -> int:
        """Bytes of the weights on disk; a missing file is left for the load to report."""
        try:
            return Path(source.files.get(WEIGHTS, "")).stat().st_size
        except OSError:
            return 0
