"""The waiting queue: one queue for each tenant, visited in the order of priority."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Iterator, Mapping

from tunery.gateway.engine.scheduling.fairness import VirtualTokenCounter
from tunery.gateway.engine.scheduling.sequence import Sequence

__all__ = ["WaitingQueue"]


class WaitingQueue:
    """Waiting sequences: first come, first served within a tenant; between tenants, `fairness` decides."""

    def __init__(self, fairness: VirtualTokenCounter) -> None:
        self._fairness = fairness
        self._queues: dict[str, deque[Sequence]] = {}

    def __iter__(self) -> Iterator[Sequence]:
        for queue in self._queues.values():
            yield from queue

    def add(self, sequence: Sequence, *, first: bool = False) -> None:
        """Append a sequence to its tenant's queue, or put it in front."""
        queue = self._queues.setdefault(sequence.tenant, deque())
        if first:
            queue.appendleft(sequence)
        else:
            queue.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out of its tenant's queue."""
        queue = self._queues[sequence.tenant]
        queue.remove(sequence)
        if not queue:
            del self._queues[sequence.tenant]

    def by_priority(self, now: float, uncharged: Mapping[str, int], closed: Container[str]) -> Iterator[Sequence]:
        """Visit every sequence that waits now, highest priority first, and no more of a tenant once it is in `closed`.

        `uncharged` counts each tenant's tokens that will yet be charged for its running sequences. Both are read anew
        before each step of the iteration, so the caller may change them.
        """
        queues = {tenant: deque(queue) for tenant, queue in self._queues.items()}

        def key(tenant: str) -> tuple[float, float, str]:
            since = queues[tenant][0].since
            priority = self._fairness.priority(tenant, now - since, uncharged=uncharged.get(tenant, 0))
            return priority, since, tenant

        heap = [key(tenant) for tenant in queues]
        heapq.heapify(heap)
        while heap:
            *_, tenant = heapq.heappop(heap)
            yield queues[tenant].popleft()
            if queues[tenant] and tenant not in closed:
                heapq.heappush(heap, key(tenant))
