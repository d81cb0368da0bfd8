"""The running sequences and what they hold: KV cache pages, adapters, and prefixes that they are
computing for others."""

from __future__ import annotations

from dataclasses import dataclass

from tunery.gateway.engine.adapters.interface import ServedAdapter
from tunery.gateway.engine.adapters.residency import Residency
from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE, PageAllocator, pages_for
from tunery.gateway.engine.scheduling.sequence import HeldAdapters, Sequence
from tunery.gateway.engine.scheduling.waiting_queue import WaitingQueues

__all__ = ["RunningBatch", "SchedulerStats"]


@dataclass(slots=True)
class SchedulerStats:
    """Counters that only grow: preemptions, and prompt tokens looked up (`prefix_queries`) and
    found in the prefix cache."""

    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


class RunningBatch:
    """Moves sequences from the waiting queue into the batch, which holds at most `max_size`, and
    back when they are preempted."""

    def __init__(
        self, waiting: WaitingQueues, pages: PageAllocator, residency: Residency[ServedAdapter], *, max_size: int
    ) -> None:
        self.max_size = max_size
        self.pages = pages
        self.sequences: list[Sequence] = []
        self.stats = SchedulerStats()
        self._waiting = waiting
        self._residency = residency
        self._computing: dict[bytes, Sequence] = {}
        """By page key, the sequence that is computing a page that the prefix cache does not have yet."""
        self._admissions = 0

    def find_prefix(self, sequence: Sequence) -> list[int] | None:
        """The cached pages that a waiting sequence would share, or None while another sequence
        computes the page after them.

        Then waiting takes less time than computing the page twice; but nobody waits for the background.
        """
        shareable = self._shareable(sequence)
        cached = self.pages.find_prefix(sequence.page_keys[:shareable])
        if len(cached) < shareable:
            other = self._computing.get(sequence.page_keys[len(cached)])
            if other is not None and (sequence.background or not other.background):
                return None
        return cached

    def has_room(self, new_pages: int, cached: list[int]) -> bool:
        """Whether one more sequence fits, with this many pages besides the `cached` ones that it shares."""
        available = self.pages.available - self.pages.count_unheld(cached)
        return len(self.sequences) < self.max_size and available >= new_pages

    def start(self, sequence: Sequence, adapters: HeldAdapters, cached: list[int], now: float) -> None:
        """Move a waiting sequence into the batch, with `adapters` that it holds already and the
        pages of its known tokens.

        The `cached` ones come from `find_prefix`; the caller has made sure that there is room for the others.
        """
        self.pages.share(cached)
        sequence.pages = cached + self.pages.allocate(pages_for(len(sequence.tokens)) - len(cached))
        sequence.computed = len(cached) * PAGE_SIZE
        sequence.charged = max(sequence.charged, sequence.computed)
        if not sequence.admission:
            sequence.cached = sequence.computed
            self.stats.prefix_queries += sequence.prompt_length
            self.stats.prefix_hits += sequence.computed
        for key in sequence.page_keys[len(cached) : self._shareable(sequence)]:
            if key not in self._computing or self._computing[key].background:
                self._computing[key] = sequence
        self._admissions += 1
        sequence.start(adapters, self._admissions, now)
        self._waiting.of(sequence).remove(sequence)
        self.sequences.append(sequence)

    def advance(self, sequence: Sequence, count: int) -> None:
        """Record that `count` more tokens are computed, and enter the pages that they complete into
        the prefix cache."""
        for page, key in sequence.advance(count):
            self.pages.publish(page, key)
            self._computing.pop(key, None)

    def preempt(self, sequence: Sequence, now: float) -> None:
        """Move a running sequence to the front of its tenant's waiting queue.

        Preemption is by recompute: its complete pages stay in the prefix cache while there is room,
        the rest is computed again.
        """
        self.stop(sequence)
        sequence.preempt(now)
        self._waiting.of(sequence).add(sequence, first=True)
        self.stats.preemptions += 1

    def stop(self, sequence: Sequence) -> None:
        """Take a sequence out of the batch and release its pages and adapters."""
        self.sequences.remove(sequence)
        for key in sequence.page_keys:
            if self._computing.get(key) is sequence:
                del self._computing[key]
        self.pages.release(sequence.pages)
        for adapter, _ in sequence.adapters:
            self._residency.release(adapter.source.digest)
        sequence.pages, sequence.adapters = [], ()

    def _shareable(self, sequence: Sequence) -> int:
        return sequence.shareable_pages if self.pages.prefix_caching else 0
