"""The thread that loads adapters, one after another, and the bytes reserved for them.

Only a few loads are submitted ahead of the thread, so the next one is chosen when a place comes free, by the
scheduler's order, and not by who came first with many.
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

__all__ = ["MAX_LOADS", "Load", "Loader"]

MAX_LOADS = 4
"""Loads submitted at once: enough to keep the thread busy during a forward pass, few enough that
nobody waits for many."""


@dataclass(slots=True)
class Load(Generic[AdapterT]):
    """A load in progress, started at `started` seconds.

    `reserved` bytes are set aside for it. It may not evict adapters wanted after tick `since`. `unwanted` says that its
    result will be dropped. `future` gives the host copy and the placed adapter, which is None when it needs more than
    was reserved.
    """

    source: AdapterSource
    started: float
    since: float
    reserved: int
    future: Future[tuple[AdapterT, AdapterT | None]]
    unwanted: bool = False


class Loader(Generic[AdapterT]):
    """Loads by digest: `read` gives the host copy, `place` moves it to the device.

    `executor` runs them in order, instead of a thread of low priority.
    """

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
        """Whether a load is in progress, or finished and not taken yet."""
        return bool(self._loads)

    @property
    def full(self) -> bool:
        """Whether MAX_LOADS loads are in progress, or finished and not taken yet."""
        return len(self._loads) >= MAX_LOADS

    def find(self, digest: str) -> Load[AdapterT] | None:
        """The load of `digest` that is in progress."""
        return self._loads.get(digest)

    def begin(
        self, source: AdapterSource, host: AdapterT | None, reserved: int, *, started: float, since: float
    ) -> None:
        """Start a load, from the host copy or else from disk.

        It must not be in progress yet, and the loader not be full.
        """
        future = self._executor.submit(self._load, source, host, reserved)
        self._loads[source.digest] = Load(source, started, since, reserved, future)
        self.reserved += reserved

    def take(self) -> Load[AdapterT] | None:
        """The next finished load, whose reservation is released; loads finish in the order they began."""
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
    """Let the engine's loop go first. Only on Linux does a thread have a priority of its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.nice(10)
