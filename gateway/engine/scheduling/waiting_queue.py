"""Owns the line of each tenant's waiting sequences and the order in which they are looked at; refuses to start any."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Iterator, Mapping

from tunery.gateway.engine.scheduling.fairness import VirtualTokenCounter
from tunery.gateway.engine.scheduling.sequence import Sequence

__all__ = ["WaitingQueue"]


class WaitingQueue:
    """A line per tenant: within one, the first comes first; between them, `fairness` decides."""

    def __init__(self, fairness: VirtualTokenCounter) -> None:
        self._fairness = fairness
        self._lines: dict[str, deque[Sequence]] = {}

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    def add(self, sequence: Sequence, *, first: bool = False) -> None:
        """Put a sequence at the end of its tenant's line, or in front."""
        line = self._lines.setdefault(sequence.tenant, deque())
        if first:
            line.appendleft(sequence)
        else:
            line.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out of its line."""
        line = self._lines[sequence.tenant]
        line.remove(sequence)
        if not line:
            del self._lines[sequence.tenant]

    def in_turn(self, now: float, ahead: Mapping[str, int], closed: Container[str]) -> Iterator[Sequence]:
        """Everybody who waits now, whose turn it is first; of tenants that are `closed`, no more.

        `ahead` are the tokens of its running prompts that a tenant will yet pay for. Both are looked at whenever the next is taken.
        """
        lines = {tenant: deque(line) for tenant, line in self._lines.items()}

        def place(tenant: str) -> tuple[float, float, str]:
            since = lines[tenant][0].since
            return self._fairness.turn(tenant, now - since, ahead=ahead.get(tenant, 0)), since, tenant

        order = [place(tenant) for tenant in lines]
        heapq.heapify(order)
        while order:
            *_, tenant = heapq.heappop(order)
            yield lines[tenant].popleft()
            if lines[tenant] and tenant not in closed:
                heapq.heappush(order, place(tenant))
