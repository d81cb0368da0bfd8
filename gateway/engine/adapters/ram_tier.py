"""The RAM tier: host copies of evicted adapters under a byte budget, evicted least recently used first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic

from tunery.gateway.engine.adapters.interface import AdapterT

__all__ = ["RamTier"]


class RamTier(Generic[AdapterT]):
    """Host copies by digest. `budget` and `bytes` are in bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self._copies: OrderedDict[str, tuple[AdapterT, int]] = OrderedDict()

    def get(self, digest: str) -> AdapterT | None:
        """The copy, or None; it counts as used now."""
        entry = self._copies.get(digest)
        if entry is None:
            return None
        self._copies.move_to_end(digest)
        return entry[0]

    def put(self, digest: str, copy: AdapterT) -> None:
        """Keep a copy, evicting the least recently used ones; a copy larger than the budget is not kept."""
        self.drop(digest)
        size = copy.bytes
        if size > self.budget:
            return
        while self.bytes + size > self.budget:
            self.drop(next(iter(self._copies)))
        self._copies[digest] = copy, size
        self.bytes += size

    def drop(self, digest: str) -> None:
        """Free a copy; does nothing when there is none."""
        _, size = self._copies.pop(digest, (None, 0))
        self.bytes -= size
