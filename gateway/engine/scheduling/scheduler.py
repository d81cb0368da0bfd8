"""The scheduler: which tokens of which sequences go through the model in the next forward pass.

Continuous batching (Orca, OSDI 2022) with chunked prefill (Sarathi-Serve, arXiv 2403.02310): each forward pass computes
the next token of every running sequence in decode, and what is left of its token budget goes to prompts, in chunks. See
admission.py for who starts to run, fairness.py for whose request comes first, preemption.py for who makes room, and
crowding.py for who sits out a forward pass.

Requests in the background (those of batches) run only on what interactive ones leave: they start when none of those
waits, in a bounded number of places, and give way first. A forward pass with interactive sequences computes at most one
token for each of these places besides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tunery.gateway.engine.adapters.interface import ServedAdapter
from tunery.gateway.engine.adapters.residency import Residency
from tunery.gateway.engine.scheduling.admission import Admission
from tunery.gateway.engine.scheduling.crowding import Crowding
from tunery.gateway.engine.scheduling.fairness import VirtualTokenCounter
from tunery.gateway.engine.scheduling.forward_batch import ScheduledTokens
from tunery.gateway.engine.scheduling.page_allocator import PageAllocator, pages_for
from tunery.gateway.engine.scheduling.preemption import victim_for_growth
from tunery.gateway.engine.scheduling.running_batch import RunningBatch, SchedulerStats
from tunery.gateway.engine.scheduling.sequence import Sequence
from tunery.gateway.engine.scheduling.waiting_queue import WaitingQueues
from tunery.registry.errors import TuneryError

__all__ = ["MAX_SCORED_TOKENS", "Scheduler"]

MAX_SCORED_TOKENS = 64
"""Prompt tokens with log-probabilities in one forward pass. Each needs a row of logits, as wide as the vocabulary."""


class Scheduler:
    """Waiting and running sequences.

    `max_batch` bounds the running ones, `background_slots` those of the background among them (0: all may be),
    `token_budget` the tokens of one forward pass. From `min_crowd` tokens on, if not 0, what other tenants have in a
    forward pass is a crowd, which sits out the pass of a short prompt (see crowding.py).
    """

    def __init__(
        self,
        pages: PageAllocator,
        residency: Residency[ServedAdapter],
        *,
        max_batch: int,
        token_budget: int,
        background_slots: int = 0,
        min_crowd: int = 0,
        fairness: VirtualTokenCounter | None = None,
    ) -> None:
        self._pages = pages
        self._token_budget = token_budget
        self._fairness = fairness or VirtualTokenCounter()
        self._background_slots = background_slots or max_batch
        self._crowding = Crowding(self._fairness, token_budget=token_budget, min_crowd=min_crowd)
        self._waiting = WaitingQueues(self._fairness)
        self._batch = RunningBatch(self._waiting, pages, residency, max_size=max_batch)
        self._admission = Admission(
            self._waiting, self._batch, residency, background_slots=self._background_slots, min_crowd=min_crowd
        )
        self._by_id: dict[str, Sequence] = {}
        self._active: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        """By tenant, its sequences, waiting or running: interactive ones, and those in the background."""

    @property
    def running(self) -> list[Sequence]:
        """The running sequences."""
        return self._batch.sequences

    @property
    def waiting(self) -> int:
        """How many sequences wait."""
        return len(self._by_id) - len(self.running)

    @property
    def idle(self) -> bool:
        """Whether no sequence runs."""
        return not self.running

    @property
    def stats(self) -> SchedulerStats:
        """Counters since the start."""
        return self._batch.stats

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        queue, active = self._waiting.of(sequence), self._active[sequence.background]
        if sequence.tenant not in active:
            queue.fairness.arrive(sequence.tenant, active)
        active[sequence.tenant] += 1
        self._by_id[sequence.id] = sequence
        queue.add(sequence)
        self._admission.announce(sequence)

    def admit(self, now: float) -> list[tuple[Sequence, TuneryError]]:
        """Start every waiting sequence that can start; drop and return those whose adapters cannot be had, and why."""
        failed = self._admission.admit(now)
        for sequence, _ in failed:
            self._drop(sequence)
        return failed

    def schedule(self, now: float) -> list[ScheduledTokens]:
        """Choose the tokens of the next forward pass, sorted so that rows with the same adapters are neighbours.

        Sequences in decode come first, then prompts by their tenants' counters, and the background last. Preempts for
        pages where there are too few.
        """
        budget, scored, background = self._token_budget, MAX_SCORED_TOKENS, self._background_budget()
        chosen: list[ScheduledTokens] = []
        for sequence in sorted(self._crowding.participants(self.running), key=self._turn):
            if sequence not in self.running:
                continue  # preempted for one before it
            most = min(budget, background) if sequence.background else budget
            count = min(sequence.uncomputed, most, scored if sequence.scoring else most)
            if count > 0 and self._grow(sequence, sequence.computed + count, now):
                chosen.append(ScheduledTokens(sequence, count))
                budget -= count
                background -= count if sequence.background else 0
                scored -= count if sequence.scoring else 0
        chosen = [item for item in chosen if item.sequence.pages]  # the others were preempted for one after them
        return sorted(chosen, key=lambda item: item.sequence.digest)

    def advance(self, item: ScheduledTokens) -> None:
        """Record that scheduled tokens have been computed, and charge the tenant for those that are new to it."""
        sequence, end = item.sequence, item.sequence.computed + item.count
        fairness = self._waiting.of(sequence).fairness
        if sequence.decoding:
            fairness.charge(sequence.tenant, output=1)
        else:
            charged = max(sequence.charged, sequence.computed)
            fairness.charge(sequence.tenant, prompt=max(0, end - charged))
        sequence.charged = max(sequence.charged, end)
        self._batch.advance(sequence, item.count)

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence and free what it holds; does nothing when it is neither waiting nor running."""
        if self._by_id.get(sequence.id) is not sequence:
            return
        if sequence in self.running:
            self._batch.stop(sequence)
            self._admission.leave(sequence)
        else:
            self._waiting.of(sequence).remove(sequence)
        self._admission.forget(sequence)
        self._drop(sequence)

    def find(self, request_id: str) -> Sequence | None:
        """The waiting or running sequence of a request."""
        return self._by_id.get(request_id)

    def running_adapters(self) -> dict[str, int]:
        """How many sequences run on each adapter, by `tenant/name`; the base model alone is left out."""
        return _count_adapters(self.running)

    def waiting_adapters(self) -> dict[str, int]:
        """How many sequences wait for each adapter, by `tenant/name`."""
        return _count_adapters(self._waiting)

    def _drop(self, sequence: Sequence) -> None:
        del self._by_id[sequence.id]
        active = self._active[sequence.background]
        active[sequence.tenant] -= 1
        if not active[sequence.tenant]:
            del active[sequence.tenant]
            self._waiting.of(sequence).fairness.leave(active)

    def _turn(self, sequence: Sequence) -> tuple[bool, bool, float, int]:
        """The place of a running sequence in the next forward pass; the lowest comes first."""
        counter = self._waiting.of(sequence).fairness.counter(sequence.tenant)
        return sequence.background, not sequence.decoding, counter, sequence.admission

    def _background_budget(self) -> int:
        """How many tokens of the next forward pass may be the background's."""
        return self._token_budget if all(s.background for s in self.running) else self._background_slots

    def _grow(self, sequence: Sequence, tokens: int, now: float) -> bool:
        """Give a running sequence pages for `tokens` tokens, preempting others for them; False when
        it was preempted itself."""
        while (needed := pages_for(tokens) - len(sequence.pages)) > self._pages.available:
            if len(self.running) == 1:
                raise RuntimeError("the KV cache is smaller than one request")
            victim = victim_for_growth(self.running, self._fairness)
            self._batch.preempt(victim, now)
            if victim is sequence:
                return False
        if needed > 0:
            sequence.pages += self._pages.allocate(needed)
        return True


def _count_adapters(sequences: Iterable[Sequence]) -> dict[str, int]:
    return dict(Counter(name for s in sequences for name in {part.source.name for part in s.composition}))
