"""Owns the thread on which adapters are loaded, one after another, and the bytes reserved for them; refuses to decide which.

Only a few loads are begun ahead of the thread. So who is next is decided when there is a place, by whoever decides about turns, and
not by who came first with many.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic

from tunery.gateway.engine.adapters.interface import AdapterT
from tunery.gateway.engine.composition import AdapterSource

__all__ = ["MOST_LOADS", "Load", "Loader"]

MOST_LOADS = 4
"""Loads under way at once: what keeps the thread busy for as long as a step may take, and makes nobody wait for more."""


@dataclass(slots=True)
class Load(Generic[AdapterT]):
    """A load under way.

    `reserved` bytes are set aside for it; it may not evict what was wanted later than tick `since`; `unwanted` says that it
    comes to nothing. `future` gives the host copy, and the adapter in its place, or None where more than reserved is needed.
    """

    source: AdapterSource
    started: float
    since: float
    reserved: int
    future: Future[tuple[AdapterT, AdapterT | None]]
    unwanted: bool = False


class Loader(Generic[AdapterT]):
    """Loads by digest. `executor` runs them, in order, in place of a thread of low priority."""

    def __init__(
        self,
        read: Callable[[AdapterSource], AdapterT],
        place: Callable[[AdapterT], AdapterT],
        executor: Executor | None = None,
    ) -> None:
        self.reserved = 0
        self._read, self._place = read, place
        self._loads: dict[str, Load[AdapterT]] = {}
        self._executor = executor or ThreadPoolExecutor(1, "adapter-load", initializer=_lower_priority)

    @property
    def busy(self) -> bool:
        """Whether a load is under way, or done and not taken yet."""
        return bool(self._loads)

    @property
    def full(self) -> bool:
        """Whether as many loads are under way, or done and not taken yet, as may be."""
        return len(self._loads) >= MOST_LOADS

    def find(self, digest: str) -> Load[AdapterT] | None:
        """The load of `digest` that is under way."""
        return self._loads.get(digest)

    def begin(
        self, source: AdapterSource, host: AdapterT | None, reserved: int, *, started: float, since: float
    ) -> None:
        """Load from the host copy, or else from disk, what is not being loaded yet; not to be called when it is full."""
        future = self._executor.submit(self._load, source, host, reserved)
        self._loads[source.digest] = Load(source, started, since, reserved, future)
        self.reserved += reserved

    def take(self) -> Load[AdapterT] | None:
        """The next load that has finished, its reservation given back; they finish in the order they began."""
        load = next(iter(self._loads.values()), None)
        if load is None or not load.future.done():
            return None
        del self._loads[load.source.digest]
        self.reserved -= load.reserved
        return load

    def close(self) -> None:
        """Start no more loads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _load(self, source: AdapterSource, host: AdapterT | None, reserved: int) -> tuple[AdapterT, AdapterT | None]:
        if host is None:
            host = self._read(source)
        return host, self._place(host) if host.bytes <= reserved else None


def _lower_priority() -> None:
    """Let the step loop go first: on Linux, and only there, a thread has a priority of its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.nice(10)
