"""Owns host copies of adapters under a hard byte budget, least recently used out first; refuses to know what they are for."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from tunery.gateway.engine.messages import AdapterSource

__all__ = ["H", "Held", "RamTier"]


class Held(Protocol):
    """An adapter's weights, in whichever memory."""

    @property
    def source(self) -> AdapterSource:
        """The version they are of."""

    @property
    def bytes(self) -> int:
        """Memory of all its tensors, at their true rank."""


H = TypeVar("H", bound=Held)


class RamTier(Generic[H]):
    """Host copies by digest."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self._copies: OrderedDict[str, tuple[H, int]] = OrderedDict()

    def get(self, digest: str) -> H | None:
        """The copy, which now counts as just used."""
        copy = self._copies.get(digest)
        if copy is None:
            return None
        self._copies.move_to_end(digest)
        return copy[0]

    def put(self, digest: str, held: H) -> None:
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
