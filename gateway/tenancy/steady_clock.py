"""Unix time that never goes back, so that what has ended stays ended when the machine's clock is set back."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["SteadyClock"]


class SteadyClock:
    """Calling it gives Unix time in seconds, or, while the machine's clock is behind what it was, what that would be by
    now. `wall` and `monotonic` are where it reads the time."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._ahead = wall() - monotonic()

    def __call__(self) -> float:
        now = self._monotonic()
        self._ahead = max(self._ahead, self._wall() - now)
        return now + self._ahead
