"""Residency: which adapters are in memory, under hard byte budgets, on the way disk → RAM → resident.

Each adapter is loaded once, one after another and only a few ahead, on a thread of low priority: `read` fetches the
files into host memory and `place` moves them to the device. A running sequence holds its adapters; those that are
neither held nor pinned may be evicted, least recently used first. All methods are called from the engine's loop; none
blocks it, and none but `resident` takes longer with more adapters.

A load reserves its bytes before it begins. Their number is estimated from the file until the first read has shown the
true one. When the estimate was too low, nothing is placed before the rest is reserved too; if it cannot be, the load
releases everything and begins again with the true size when there is room. So loads never wait for each other's
reservations.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Generic

from tunery.gateway.engine.adapters.failed_loads import FailedLoads
from tunery.gateway.engine.adapters.interface import AdapterT
from tunery.gateway.engine.adapters.loader import Load, Loader
from tunery.gateway.engine.adapters.ram_tier import RamTier
from tunery.gateway.engine.adapters.resident_tier import ResidentTier
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.messages import Resident
from tunery.registry.errors import NotFound, TuneryError, Unavailable
from tunery.registry.peft.layout import WEIGHTS

__all__ = ["Residency"]

MAX_NOTES = 10_000
"""Digests whose size and latest `want` are remembered; a forgotten size is read from the file again."""


def _identity(adapter: AdapterT) -> AdapterT:
    return adapter


class Residency(Generic[AdapterT]):
    """Adapters by digest: resident, loading, in RAM, or only on disk.

    `budget` bounds the bytes of resident and loading adapters, `ram_budget` those of host copies kept for evicted ones
    (where `place` moves nothing, copy and resident adapter are the same memory, counted in both). `place` should not
    return more bytes than it was given; if it does, the adapter is placed again with its true size reserved. `stretch`
    is how many bytes in memory a byte on disk becomes. `executor` runs the loads in order, instead of a thread.

    `loads`, `load_failures`, `evictions` and `hits` count by adapter name. `load_seconds` are finished loads as (name,
    seconds), until the reader takes them.
    """

    def __init__(
        self,
        budget: int,
        read: Callable[[AdapterSource], AdapterT],
        *,
        place: Callable[[AdapterT], AdapterT] = _identity,
        ram_budget: int = 0,
        clock: Callable[[], float] = time.monotonic,
        stretch: float = 1.0,
        executor: Executor | None = None,
    ) -> None:
        self.budget = budget
        self._clock, self._stretch = clock, stretch
        self._loader: Loader[AdapterT] = Loader(read, place, executor)
        self._tier: ResidentTier[AdapterT] = ResidentTier()
        self._ram: RamTier[AdapterT] = RamTier(ram_budget)
        self._failures = FailedLoads(clock)
        self._sizes: dict[str, int] = {}
        self._wanted: dict[str, int] = {}
        self._awaiting_loader: dict[str, int] = {}
        self._ticks = itertools.count(1)
        self.loads: Counter[str] = Counter()
        self.load_failures: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.load_seconds: list[tuple[str, float]] = []

    @property
    def bytes(self) -> int:
        """Memory of resident adapters, plus what is reserved for loads."""
        return self._tier.bytes + self._loader.reserved

    @property
    def ram_bytes(self) -> int:
        """Memory of the host copies."""
        return self._ram.bytes

    @property
    def busy(self) -> bool:
        """Whether a load is in progress."""
        return self._loader.busy

    def is_resident(self, digest: str) -> bool:
        """Whether `hold` would return the adapter now."""
        return digest in self._tier

    def is_coming(self, digest: str) -> bool:
        """Whether the adapter is resident or loading, or lacked only a place in the loader at the latest `hold`."""
        return digest in self._tier or self._loader.find(digest) is not None or digest in self._awaiting_loader

    def resident(self) -> list[Resident]:
        """The resident adapters, least recently used first."""
        return self._tier.resident()

    def hold(self, source: AdapterSource, *, hit: bool = True) -> AdapterT | None:
        """Hold the adapter for a request that starts now, or have it loaded and return None: call again after `poll`.

        With `hit`, a resident adapter counts as a hit: the request has not waited for it. Raises what its loading ended
        with, as long as that counts (see FailedLoads), and Unavailable (`adapter_too_large`) when it can never fit
        beside the pinned ones.
        """
        held = self._tier.hold(source.digest)
        if held is not None:
            self._wanted.pop(source.digest, None)
            self.hits[source.name] += hit
            return held
        error = self._failures.find(source.digest)
        if error is not None:
            raise error
        self._begin(source, math.inf)
        return None

    def release(self, digest: str) -> None:
        """Release a held adapter; to be called once for every `hold` that returned it."""
        self._tier.release(digest)

    def pin(self, digest: str) -> None:
        """Keep a resident adapter until it is unloaded; raises NotFound when it is not resident."""
        if not self._tier.pin(digest):
            raise NotFound(f"adapter {digest} is not resident: load it, and pin it while it is held")

    def want(self, source: AdapterSource) -> None:
        """A request for the adapter waits: load it, unless that evicts what other requests are
        about to use. Never raises.

        Evicts only idle adapters that nobody has wanted since the previous `want` for this one. So wants that are
        repeated while their requests wait protect each other, and one that is no longer repeated gives way.
        """
        before = self._wanted.pop(source.digest, 0)
        _note(self._wanted, source.digest, next(self._ticks))
        if source.digest not in self._tier and self._failures.find(source.digest) is None:
            with contextlib.suppress(TuneryError):  # too large: `hold` will raise it
                self._begin(source, before)

    def forget(self, digest: str) -> None:
        """An operator wants the adapter loaded: forget its failures, and an unload that is still to take effect."""
        self._failures.forget(digest)
        self._sizes.pop(digest, None)
        self._tier.stay(digest)

    def unload(self, digest: str) -> int:
        """Free an adapter in both tiers, pinned or not; its resident bytes (0 when it is not resident).

        A held one is freed with its last holder. The result of a load in progress is dropped unless
        it is asked for again.
        """
        self._ram.drop(digest)
        load = self._loader.find(digest)
        if load is not None:
            load.unwanted = True
        return self._tier.unload(digest)

    def poll(self) -> bool:
        """Take in finished loads; whether there were any."""
        changed = False
        while (load := self._loader.take()) is not None:
            self._finish(load)
            changed = True
        return changed

    def close(self) -> None:
        """Stop loading."""
        self._loader.close()

    def _begin(self, source: AdapterSource, since: float) -> None:
        """Start a load, unless it is in progress, the loader is full or there is no room; a later call tries again."""
        load = self._loader.find(source.digest)
        if load is None:
            self._start(source, since, self._ram.get(source.digest), self._clock())
        else:
            load.since, load.unwanted = max(load.since, since), False

    def _start(self, source: AdapterSource, since: float, host: AdapterT | None, started: float) -> None:
        needed = self._size(source)
        if needed > self.budget - self._tier.pinned_bytes:
            raise self._too_large(source, needed)
        if self._may_begin(source.digest, needed, since):
            self._loader.begin(source, host, needed, started=started, since=since)

    def _may_begin(self, digest: str, needed: int, since: float) -> bool:
        """Whether the loader takes one more and room has been made for it.

        For `is_coming`, records a request that lacks only a place in the loader.
        """
        requested = since == math.inf
        if requested:
            self._awaiting_loader.pop(digest, None)
        if not self._loader.full:
            return self._make_room(needed, since)
        if requested and self._missing(needed) <= self._tier.idle_bytes:
            _note(self._awaiting_loader, digest, 0)
        return False

    def _too_large(self, source: AdapterSource, needed: int) -> Unavailable:
        pinned = self._tier.pinned_bytes
        occupied, advice = (
            (f", of which {pinned:,} are pinned", "unload one of those, or ") if needed <= self.budget else ("", "")
        )
        return Unavailable(
            f"{source.title} needs {needed:,} bytes and the adapter budget is {self.budget:,}{occupied}: "
            f"{advice}raise adapter_budget_mb",
            code="adapter_too_large",
        )

    def _missing(self, needed: int) -> int:
        """How many bytes must be freed for `needed` more; none if it is negative."""
        return self.bytes + needed - self.budget

    def _make_room(self, needed: int, since: float) -> bool:
        """Evict idle adapters, least recently used first, until `needed` bytes fit; none if they
        would not. Whether they fit."""
        missing = self._missing(needed)
        if missing <= 0:
            return True
        victims = self._tier.oldest(missing, lambda digest: self._wanted.get(digest, 0) > since)
        for digest in victims:
            self.evictions[self._tier.remove(digest).source.name] += 1
            self._ram.get(digest)  # its host copy counts as used now
        return bool(victims)

    def _finish(self, load: Load[AdapterT]) -> None:
        """Take in a finished load, or remember its error."""
        source = load.source
        try:
            host, placed = load.future.result()
            if not load.unwanted:
                self._take_in(load, host, placed)
        except Exception as error:  # a load must never end the engine's loop
            self.load_failures[source.name] += 1
            self._failures.add(source, error)

    def _take_in(self, load: Load[AdapterT], host: AdapterT, placed: AdapterT | None) -> None:
        source = load.source
        _note(self._sizes, source.digest, max(host.bytes, 0 if placed is None else placed.bytes))
        if placed is None or placed.bytes > load.reserved:
            self._start(source, load.since, host, load.started)
        else:
            self._tier.put(source.digest, placed)
            self._failures.forget(source.digest)
            self.loads[source.name] += 1
            self.load_seconds.append((source.name, self._clock() - load.started))
        self._ram.put(source.digest, host)

    def _size(self, source: AdapterSource) -> int:
        """Bytes of the adapter: measured, or estimated from its file; 0 for a missing file, which
        the load will report."""
        size = self._sizes.get(source.digest)
        if size is None:
            try:
                on_disk = Path(source.files[WEIGHTS]).stat().st_size
            except (KeyError, OSError):
                return 0
            size = int(on_disk * self._stretch)
            _note(self._sizes, source.digest, size)
        return size


def _note(notes: dict[str, int], digest: str, value: int) -> None:
    notes[digest] = value
    if len(notes) > MAX_NOTES:
        del notes[next(iter(notes))]
