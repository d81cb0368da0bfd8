"""Owns host copies of adapters under a hard byte budget, least recently used out first; refuses to know what they are for."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic

from tunery.gateway.engine.adapters.interface import AdapterT

__all__ = ["RamTier"]


class RamTier(Generic[AdapterT]):
    """Host copies by digest."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self._copies: OrderedDict[str, tuple[AdapterT, int]] = OrderedDict()

    def get(self, digest: str) -> AdapterT | None:
        """The copy, which now counts as just used."""
        copy = self._copies.get(digest)
        if copy is None:
            return None
        self._copies.move_to_end(digest)
        return copy[0]

    def put(self, digest: str, held: AdapterT) -> None:
        """Keep a copy, in the place of the least recently used ones; one that is larger than the budget is not kept."""
        self.drop(digest)
        size = held.bytes
        if size > self.budget:
            return
        while self.bytes + size > self.budget:
            self.drop(next(iter(self._copies)))
        self._copies[digest] = held, size
        self.bytes += size

    def drop(self, digest: str) -> None:
        """Free a copy; harmless when there is none."""
        _, size = self._copies.pop(digest, (None, 0))
        self.bytes -= size
