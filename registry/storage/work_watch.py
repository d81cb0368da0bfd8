"""When to look for work in the database: after every commit, and now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["WorkWatch"]


class WorkWatch:
    """Says when to look for work. `changes` is the registry's; work that appears without a commit, as when a lease runs
    out, is found within `seconds`."""

    def __init__(self, changes: Callable[[], int], *, seconds: float) -> None:
        self._read, self._seconds = changes, seconds
        self._latest, self._idle, self._looked = 0, -1, float("-inf")

    def due(self) -> bool:
        """Whether there may be work."""
        self._latest, now = self._read(), time.monotonic()
        if self._latest == self._idle and now - self._looked < self._seconds:
            return False
        self._looked = now
        return True

    def found_nothing(self) -> None:
        """There was no work, so it is not looked for until something is committed after the last `due`."""
        self._idle = self._latest
