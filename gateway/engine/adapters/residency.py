"""Owns which adapters are in memory, under hard byte budgets: disk → RAM → resident; refuses to make the step loop wait.

Loads happen once each, one after another and only a few ahead, on a thread of low priority: `read` fetches the files into host
memory and `place` moves them to the device. Whoever runs on an adapter holds it; what is neither held nor pinned may be evicted, least recently
used first. All methods are called from the step loop's thread, and none but `resident` takes longer the more adapters there are.

A load reserves its bytes before it begins. How many is a guess from the file until the first read has told the truth; when
the guess was too low, nothing is placed before the rest is reserved too, and if that cannot be had, the load gives back
everything and begins anew, with the true figure, when there is room. So loads never wait for each other's reservations.
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
from tunery.gateway.engine.messages import AdapterSource, Resident
from tunery.registry.errors import NotFound, TuneryError, Unavailable
from tunery.registry.peft.layout import WEIGHTS

__all__ = ["Residency"]

MOST_NOTES = 10_000
"""Digests whose size, and whose last want, is remembered; forgetting one costs a look at its file."""


def _unmoved(held: AdapterT) -> AdapterT:
    return held


class Residency(Generic[AdapterT]):
    """Adapters by digest: resident, loading, in RAM, or only on disk.

    `budget` bounds the bytes of what is resident or being loaded, `ram_budget` those of the host copies kept for adapters
    that come back (where `place` moves nothing, copy and resident are the same memory, counted in both). `place` must not
    return more bytes than it was given: what does is taken out again, and placed anew with its true size reserved. `stretch`
    is how many bytes in memory one byte on disk becomes. `executor` runs the loads, in order, in place of the thread.

    `loads`, `load_failures`, `evictions` and `hits` count by adapter name; `load_seconds` are the loads that the reader has
    not taken yet, as (name, seconds).
    """

    def __init__(
        self,
        budget: int,
        read: Callable[[AdapterSource], AdapterT],
        *,
        place: Callable[[AdapterT], AdapterT] = _unmoved,
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
        self._refusals = FailedLoads(clock)
        self._sizes: dict[str, int] = {}
        self._wanted: dict[str, int] = {}
        self._turns: dict[str, int] = {}
        self._ticks = itertools.count(1)
        self.loads: Counter[str] = Counter()
        self.load_failures: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.load_seconds: list[tuple[str, float]] = []

    @property
    def bytes(self) -> int:
        """Memory of what is resident, plus what is set aside for loads under way."""
        return self._tier.bytes + self._loader.reserved

    @property
    def ram_bytes(self) -> int:
        """Memory of the host copies."""
        return self._ram.bytes

    @property
    def busy(self) -> bool:
        """Whether a load is under way."""
        return self._loader.busy

    def is_resident(self, digest: str) -> bool:
        """Whether the adapter can be held at once."""
        return digest in self._tier

    def is_coming(self, digest: str) -> bool:
        """Whether the adapter is in memory or being loaded, or lacked nothing but its turn when it was last asked for."""
        return digest in self._tier or self._loader.find(digest) is not None or digest in self._turns

    def resident(self) -> list[Resident]:
        """What is in memory, least recently used first."""
        return self._tier.resident()

    def hold(self, source: AdapterSource, *, hit: bool = True) -> AdapterT | None:
        """Take the adapter for a request that starts now, or see to its loading and return None: call again after `poll`.

        `hit` says that the caller has not waited for it before. Raises what its loading ended with, to everybody who asks
        while that counts (see `FailedLoads`), and Unavailable (adapter_too_large) when it can never fit beside what is pinned.
        """
        held = self._tier.hold(source.digest)
        if held is not None:
            self._wanted.pop(source.digest, None)
            self.hits[source.name] += hit
            return held
        error = self._refusals.find(source.digest)
        if error is not None:
            raise error
        self._begin(source, math.inf)
        return None

    def release(self, digest: str) -> None:
        """One holder is done; to be called once for every `hold` that gave the adapter."""
        self._tier.release(digest)

    def pin(self, digest: str) -> None:
        """Keep a resident adapter until it is unloaded, whatever needs room; raises NotFound when it is not resident."""
        if not self._tier.pin(digest):
            raise NotFound(f"adapter {digest} is not resident: load it, and pin it while it is held")

    def want(self, source: AdapterSource) -> None:
        """A request for the adapter is in the queue: load it if that costs nobody else what they are about to use.

        Evicts only what is idle and has not been wanted, without being used, since the last time that this one was. So wants
        that are repeated while their request waits protect each other, and one that is repeated no more gives way.
        Never raises.
        """
        before = self._wanted.pop(source.digest, 0)
        _note(self._wanted, source.digest, next(self._ticks))
        if source.digest not in self._tier and self._refusals.find(source.digest) is None:
            with contextlib.suppress(TuneryError):  # too large: its own hold will say so
                self._begin(source, before)

    def forget(self, digest: str) -> None:
        """An operator wants the adapter loaded: drop what is held against it, its past errors and an unload still to come."""
        self._refusals.forget(digest)
        self._sizes.pop(digest, None)
        self._tier.stay(digest)

    def unload(self, digest: str) -> int:
        """Free an adapter in both tiers, pinned or not; its resident bytes (0 when there are none).

        One that is held goes with its last holder. A load under way comes to nothing unless somebody asks for it again.
        """
        self._ram.drop(digest)
        load = self._loader.find(digest)
        if load is not None:
            load.unwanted = True
        return self._tier.unload(digest)

    def poll(self) -> bool:
        """Take in the loads that have finished; return whether anything changed."""
        changed = False
        while (load := self._loader.take()) is not None:
            self._finish(load)
            changed = True
        return changed

    def close(self) -> None:
        """Stop loading."""
        self._loader.close()

    def _begin(self, source: AdapterSource, since: float) -> None:
        """Start a load if it is not under way, the loader takes it and room can be made; else leave things for a later call."""
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
        """Whether the loader takes one more and room has been made for it; for `is_coming`, notes a request that only lacks the former."""
        requested = since == math.inf
        if requested:
            self._turns.pop(digest, None)
        if not self._loader.full:
            return self._make_room(needed, since)
        if requested and self._missing(needed) <= self._tier.idle_bytes:
            _note(self._turns, digest, 0)
        return False

    def _too_large(self, source: AdapterSource, needed: int) -> Unavailable:
        pinned = self._tier.pinned_bytes
        but, advice = (
            (f", of which {pinned:,} are pinned", "unload one of those, or ") if needed <= self.budget else ("", "")
        )
        return Unavailable(
            f"{source.title} needs {needed:,} bytes and the adapter budget is {self.budget:,}{but}: "
            f"{advice}raise adapter_budget_mb",
            code="adapter_too_large",
        )

    def _missing(self, needed: int) -> int:
        """How many bytes have to go before `needed` more fit; none when it is negative."""
        return self.bytes + needed - self.budget

    def _make_room(self, needed: int, since: float) -> bool:
        """Evict idle adapters, oldest first, until `needed` bytes fit; evict nothing when they cannot."""
        missing = self._missing(needed)
        if missing <= 0:
            return True
        victims = self._tier.oldest(missing, lambda digest: self._wanted.get(digest, 0) > since)
        for digest in victims:
            self.evictions[self._tier.remove(digest).source.name] += 1
            self._ram.get(digest)  # its host copy counts as used until now
        return bool(victims)

    def _finish(self, load: Load[AdapterT]) -> None:
        """Take in what a load came to."""
        source = load.source
        try:
            host, placed = load.future.result()
            if not load.unwanted:
                self._take_in(load, host, placed)
        except Exception as error:  # a load must never end the step loop
            self.load_failures[source.name] += 1
            self._refusals.add(source, error)

    def _take_in(self, load: Load[AdapterT], host: AdapterT, placed: AdapterT | None) -> None:
        source = load.source
        _note(self._sizes, source.digest, max(host.bytes, 0 if placed is None else placed.bytes))
        if placed is None or placed.bytes > load.reserved:
            self._start(source, load.since, host, load.started)
        else:
            self._tier.put(source.digest, placed)
            self._refusals.forget(source.digest)
            self.loads[source.name] += 1
            self.load_seconds.append((source.name, self._clock() - load.started))
        self._ram.put(source.digest, host)

    def _size(self, source: AdapterSource) -> int:
        """Bytes that the adapter takes, as far as is known; a missing file is left for the load to report."""
        known = self._sizes.get(source.digest)
        if known is None:
            try:
                on_disk = Path(source.files[WEIGHTS]).stat().st_size
            except (KeyError, OSError):
                return 0
            known = int(on_disk * self._stretch)
            _note(self._sizes, source.digest, known)
        return known


def _note(notes: dict[str, int], digest: str, value: int) -> None:
    notes[digest] = value
    if len(notes) > MOST_NOTES:
        del notes[next(iter(notes))]
