"""Counters of one process."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from tunery.gateway.tenancy.limits.interface import Resource, Shortage, Standing, Taken, Want
from tunery.registry.limits.window import SlidingWindow

__all__ = ["SOON", "MemoryCounters"]

SOON = 1.0
"""Seconds after which a place among concurrent requests may be free; nobody knows."""


class MemoryCounters:
    """See Counters. `clock` is monotonic, in seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, str], SlidingWindow] = {}
        self._running: Counter[str] = Counter()

    async def start(self) -> None:
        """See Counters: nothing to start."""

    async def stop(self) -> None:
        """See Counters: nothing to give back."""

    def shortage(self, wants: Sequence[Want]) -> Shortage | None:
        """See Counters."""
        now = self._clock()
        for want in wants:
            seconds = self._wait(want, now)
            if seconds is None or seconds > 0:
                return Shortage(want, seconds)
        return None

    async def take(self, wants: Sequence[Want]) -> list[Taken] | Shortage:
        """See Counters."""
        return self.shortage(wants) or [self._take(want) for want in wants]

    def give_back(self, taken: Taken, amount: int) -> None:
        """See Counters."""
        want = taken.want
        if want.resource == "concurrent":
            self._running[want.subject] -= amount
            if not self._running[want.subject]:
                del self._running[want.subject]
        elif (window := self._windows.get((want.subject, want.resource))) is not None:
            window.give_back(amount, taken.slot)

    def standing(self, subject: str, resource: Resource, limit: int) -> Standing:
        """See Counters."""
        window, now = self._window(subject, resource), self._clock()
        return Standing(max(0, limit - window.used(now)), window.empty_in(now))

    def _wait(self, want: Want, now: float) -> float | None:
        if want.resource != "concurrent":
            return self._window(want.subject, want.resource).wait(want.amount, want.limit, now)
        if want.amount > want.limit:
            return None
        return 0.0 if self._running[want.subject] + want.amount <= want.limit else SOON

    def _take(self, want: Want) -> Taken:
        if want.resource == "concurrent":
            self._running[want.subject] += want.amount
            return Taken(want)
        return Taken(want, self._window(want.subject, want.resource).add(want.amount, self._clock()))

    def _window(self, subject: str, resource: str) -> SlidingWindow:
        if (window := self._windows.get((subject, resource))) is None:
            window = self._windows[subject, resource] = SlidingWindow()
        return window
