"""Owns who runs in the next step; refuses to touch tensors.

Continuous batching (Orca, OSDI 2022) with chunked prefill (Sarathi-Serve, arXiv 2403.02310): every running sequence gets its next token,
and what is left of the step's token budget goes to prompts. Who comes first is decided by fairness between tenants, not by arrival;
within a tenant the first comes first, except that a request whose adapter is on its way lets others pass. Where there is no room, the tenant
that runs beyond its share gives way: its youngest sequence is taken out and later computed again from what the cache kept of it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Literal

from tunery.gateway.engine.adapter import ServedAdapter, check_composition
from tunery.gateway.engine.fairness import Fairness
from tunery.gateway.engine.pages import PAGE, Pages, pages_for
from tunery.gateway.engine.residency import Residency
from tunery.gateway.engine.sequence import Sequence
from tunery.gateway.engine.step import Scheduled
from tunery.registry.errors import TuneryError

__all__ = ["STARVED_AFTER", "Scheduler"]

Obstacle = Literal["adapter", "twin", "room"]

STARVED_AFTER = 1.0
"""Seconds of waiting for room, in the batch or among the adapters, after which those in the way make room."""


class Scheduler:
    """Waiting and running sequences. `token_budget` is the most tokens of a step."""

    def __init__(
        self,
        pages: Pages,
        residency: Residency[ServedAdapter],
        *,
        max_batch: int,
        token_budget: int,
        fairness: Fairness | None = None,
    ) -> None:
        self._pages = pages
        self._residency = residency
        self._max_batch = max_batch
        self._token_budget = token_budget
        self._fairness = fairness or Fairness()
        self._queues: dict[str, deque[Sequence]] = {}
        self._by_id: dict[str, Sequence] = {}
        self._begun: dict[bytes, Sequence] = {}
        self._admissions = 0
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run now."""
        return not self.running

    @property
    def waiting(self) -> int:
        """How many sequences wait."""
        return len(self._by_id) - len(self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        active = self._active()
        if sequence.tenant not in active:
            self._fairness.arrive(sequence.tenant, active)
        self._by_id[sequence.id] = sequence
        self._queues.setdefault(sequence.tenant, deque()).append(sequence)
        for part in sequence.mix:
            self._residency.want(part.source)

    def admit(self, now: float) -> list[tuple[Sequence, TuneryError]]:
        """Start every waiting sequence that can start; return those whose adapter cannot be had, and why."""
        failed: list[tuple[Sequence, TuneryError]] = []
        passed: set[str] = set()
        starved = self._starved(now)
        while (sequence := self._next(now, passed)) is not None:
            passed.add(sequence.id)
            if starved is not None and sequence is not starved and sequence.mix:
                continue
            try:
                obstacle = self._start(sequence, now)
            except TuneryError as error:
                self._drop(sequence)
                failed.append((sequence, error))
                continue
            if obstacle is None:
                self._queues[sequence.tenant].remove(sequence)
            elif obstacle == "room":
                if now - sequence.since > STARVED_AFTER:
                    break
                # Nobody behind it in the same queue may take the little room there is.
                passed.update(other.id for other in self._queues[sequence.tenant])
        return failed

    def plan(self, now: float) -> list[Scheduled]:
        """Choose the next step's tokens, sorted by adapter so that each adapter's rows are neighbours."""
        budget = self._token_budget
        chosen: list[Scheduled] = []
        turns = {tenant: self._fairness.paid(tenant) for tenant in {s.tenant for s in self.running}}
        for sequence in sorted(self.running, key=lambda s: (not s.decoding, turns[s.tenant], s.started)):
            if sequence not in self.running:
                continue  # taken out for one before it
            count = min(sequence.left, budget) if budget > 0 else 0
            if count and self._grow(sequence, sequence.computed + count, now):
                chosen.append(Scheduled(sequence, count))
                budget -= count
        chosen = [item for item in chosen if item.sequence.pages]
        return sorted(chosen, key=lambda item: item.sequence.digest)

    def advance(self, item: Scheduled) -> None:
        """Note that a scheduled piece has been computed."""
        sequence = item.sequence
        if sequence.decoding:
            self._fairness.charge(sequence.tenant, output=1)
        for page, key in sequence.advance(item.count):
            self._pages.publish(page, key)
            self._begun.pop(key, None)

    def finish(self, sequence: Sequence) -> None:
        """Free what a running or waiting sequence holds; harmless when it is neither."""
        if self._by_id.get(sequence.id) is not sequence:
            return
        if sequence in self.running:
            self._stop(sequence)
        else:
            self._queues[sequence.tenant].remove(sequence)
        self._drop(sequence)

    def find(self, request_id: str) -> Sequence | None:
        """The live sequence of a request."""
        return self._by_id.get(request_id)

    def running_adapters(self) -> dict[str, int]:
        """How many sequences run on each adapter, by `tenant/name`; the bare base is left out."""
        return _named(self.running)

    def waiting_adapters(self) -> dict[str, int]:
        """How many sequences wait for each adapter."""
        return _named(self._waiting())

    # -- waiting ----------------------------------------------------------------------------------------------------------

    def _waiting(self) -> Iterator[Sequence]:
        for queue in self._queues.values():
            yield from queue

    def _active(self) -> set[str]:
        return {sequence.tenant for sequence in self._by_id.values()}

    def _next(self, now: float, passed: set[str]) -> Sequence | None:
        """The sequence whose turn it is, among those not passed over yet."""
        heads = (next((s for s in queue if s.id not in passed), None) for queue in self._queues.values())
        return min(
            (head for head in heads if head is not None),
            key=lambda s: (self._fairness.turn(s.tenant, now - s.since), s.since),
            default=None,
        )

    def _drop(self, sequence: Sequence) -> None:
        """Forget a sequence altogether."""
        del self._by_id[sequence.id]
        queue = self._queues.get(sequence.tenant)
        if queue and sequence in queue:
            queue.remove(sequence)
        if not queue:
            self._queues.pop(sequence.tenant, None)
        active = self._active()
        if sequence.tenant not in active:
            self._fairness.leave(sequence.tenant, active)

    def _starved(self, now: float) -> Sequence | None:
        """The sequence that has waited longest for room among the adapters, once that is too long; the room is made."""
        late = [s for s in self._waiting() if s.missed and now - s.since > STARVED_AFTER and not self._coming(s)]
        if not late:
            return None
        starved = min(late, key=lambda s: s.since)
        own = {part.source.digest for part in starved.mix}
        users = [s for s in self.running if s.mix and not own & {part.source.digest for part in s.mix}]
        if not users:
            return None
        eldest = min(users, key=lambda s: s.since)
        for sequence in [s for s in users if s.digest == eldest.digest]:
            self._preempt(sequence, now)
        return starved

    def _coming(self, sequence: Sequence) -> bool:
        """Whether all adapters of a sequence are in memory or being loaded."""
        return all(self._residency.is_coming(part.source.digest) for part in sequence.mix)

    # -- starting ---------------------------------------------------------------------------------------------------------

    def _start(self, sequence: Sequence, now: float) -> Obstacle | None:
        """Give a sequence its adapters, a place in the batch and its first pages, or say what stands in the way."""
        adapters = self._hold(sequence)
        if adapters is None:
            return "adapter"
        obstacle = self._place(sequence, now)
        if obstacle is not None:
            self._release(adapters)
            return obstacle
        sequence.adapters = adapters
        self._admissions += 1
        sequence.started = self._admissions
        self.running.append(sequence)
        if not sequence.charged:
            sequence.charged = True
            self._fairness.charge(sequence.tenant, prompt=sequence.prompt_length - sequence.computed)
        return None

    def _hold(self, sequence: Sequence) -> tuple[tuple[ServedAdapter, float], ...] | None:
        """Hold all adapters of a sequence, or none; what is missing begins to load, also without room in the batch."""
        held: list[tuple[ServedAdapter, float]] = []
        for part in sequence.mix:
            try:
                adapter = self._residency.hold(part.source, hit=not sequence.missed)
            except TuneryError:
                self._release(held)
                raise
            if adapter is None:
                sequence.missed = True
                self._release(held)
                return None
            held.append((adapter, part.weight))
        if len(held) > 1 or any(weight != 1.0 for _, weight in held):
            try:
                check_composition(adapter for adapter, _ in held)
            except TuneryError:
                self._release(held)
                raise
        return tuple(held)

    def _release(self, held: Iterable[tuple[ServedAdapter, float]]) -> None:
        for adapter, _ in held:
            self._residency.release(adapter.source.digest)

    def _place(self, sequence: Sequence, now: float) -> Obstacle | None:
        """Take pages, those of a known beginning first, and a place in the batch, from tenants with more than their share if need be."""
        shareable = sequence.shareable if self._pages.reuse else 0
        found = self._pages.find(sequence.keys[:shareable])
        if len(found) < shareable and sequence.keys[len(found)] in self._begun:
            # Somebody is computing the very page that comes next: the wait is shorter than the work.
            return "twin"
        total = pages_for(len(sequence.tokens))
        victims = self._victims(sequence.tenant, total - len(found) + self._pages.idle(found))
        if victims is None:
            return "room"
        for victim in victims:
            self._preempt(victim, now)
        self._pages.share(found)
        sequence.pages = found + self._pages.take(total - len(found))
        sequence.computed = len(found) * PAGE
        if not sequence.charged:
            sequence.cached = sequence.computed
            self.prefix_queries += sequence.prompt_length
            self.prefix_hits += sequence.computed
        for key in sequence.keys[len(found) : shareable]:
            self._begun.setdefault(key, sequence)
        return None

    def _victims(self, tenant: str, pages: int) -> list[Sequence] | None:
        """Who must go so that one more sequence of `tenant` with `pages` new pages fits; None when nobody runs beyond their share."""
        victims: list[Sequence] = []
        candidates = sorted(self.running, key=lambda s: s.started)
        running = Counter(s.tenant for s in candidates)
        wanted = (running[tenant] + 1) / self._fairness.weight(tenant)
        room, spare = self._max_batch - len(self.running), self._pages.available
        while room < 1 or spare < pages:
            most = max(
                (s.tenant for s in candidates), key=lambda t: running[t] / self._fairness.weight(t), default=tenant
            )
            if most == tenant or (running[most] - 1) / self._fairness.weight(most) < wanted:
                return None
            victim = next(s for s in reversed(candidates) if s.tenant == most)
            candidates.remove(victim)
            victims.append(victim)
            running[most] -= 1
            room, spare = room + 1, spare + self._pages.sole(victim.pages)
        return victims

    # -- running ----------------------------------------------------------------------------------------------------------

    def _grow(self, sequence: Sequence, tokens: int, now: float) -> bool:
        """See that a sequence has pages for `tokens`, taking the youngest sequences out for them; it may be taken out itself."""
        while (needed := pages_for(tokens) - len(sequence.pages)) > self._pages.available:
            paid = {s.tenant: self._fairness.paid(s.tenant) for s in self.running}
            victim = max(self.running, key=lambda s: (paid[s.tenant], s.started))
            if len(self.running) == 1:
                raise RuntimeError("the cache is smaller than one request")
            self._preempt(victim, now)
            if victim is sequence:
                return False
        if needed > 0:
            sequence.pages += self._pages.take(needed)
        return True

    def _preempt(self, sequence: Sequence, now: float) -> None:
        """Take a running sequence out; its computed pages stay in the cache while there is room."""
        self._stop(sequence)
        sequence.computed = 0
        sequence.since = now
        self._queues.setdefault(sequence.tenant, deque()).appendleft(sequence)
        self.preemptions += 1

    def _stop(self, sequence: Sequence) -> None:
        """Give back what a running sequence holds."""
        self.running.remove(sequence)
        for key in sequence.keys:
            if self._begun.get(key) is sequence:
                del self._begun[key]
        self._pages.release(sequence.pages)
        self._release(sequence.adapters)
        sequence.pages, sequence.adapters = [], ()


def _named(sequences: Iterable[Sequence]) -> dict[str, int]:
    return dict(Counter(name for s in sequences for name in {part.source.name for part in s.mix}))
