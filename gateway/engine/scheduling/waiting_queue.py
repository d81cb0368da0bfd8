"""The waiting queues: interactive requests and the background, each with one queue for each tenant, visited in the order
of priority."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Iterator, Mapping

from tunery.gateway.engine.scheduling.fairness import VirtualTokenCounter
from tunery.gateway.engine.scheduling.sequence import Sequence

__all__ = ["WaitingQueue", "WaitingQueues"]


class WaitingQueue:
    """Waiting sequences: first come, first served within a tenant; between tenants, `fairness` decides."""

    def __init__(self, fairness: VirtualTokenCounter) -> None:
        self.fairness = fairness
        self._queues: dict[str, deque[Sequence]] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

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
            priority = self.fairness.priority(tenant, now - since, uncharged=uncharged.get(tenant, 0))
            return priority, since, tenant

        heap = [key(tenant) for tenant in queues]
        heapq.heapify(heap)
        while heap:
            *_, tenant = heapq.heappop(heap)
            yield queues[tenant].popleft()
            if queues[tenant] and tenant not in closed:
                heapq.heappush(heap, key(tenant))


class WaitingQueues:
    """One queue for interactive requests and one for the background, which do not share their tenants' counters: what a
    tenant is served in the background leaves its other requests where they are."""

    def __init__(self, fairness: VirtualTokenCounter) -> None:
        self.interactive = WaitingQueue(fairness)
        self.background = WaitingQueue(VirtualTokenCounter(fairness.weights))

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.interactive
        yield from self.background

    def of(self, sequence: Sequence) -> WaitingQueue:
        """The queue in which a sequence waits, or would."""
        return self.background if sequence.background else self.interactive
