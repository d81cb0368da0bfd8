"""Owns who runs in the next step; refuses to touch tensors.

Continuous batching (Orca, OSDI 2022) with chunked prefill (Sarathi-Serve, arXiv 2403.02310): every running sequence gets its next token,
and what is left of the step's token budget goes to prompts. Who comes first is decided by fairness between tenants, not by arrival;
within a tenant the first comes first, except that a request whose adapter is on its way lets others pass. Where there is no room, the tenant
that runs beyond its share gives way: its youngest sequence is taken out and later computed again from what the cache kept of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from tunery.gateway.engine.adapters.interface import ServedAdapter, check_composition
from tunery.gateway.engine.adapters.residency import Residency
from tunery.gateway.engine.messages import WeightedAdapter, composition_title
from tunery.gateway.engine.scheduling.fairness import VirtualTokenCounter
from tunery.gateway.engine.scheduling.forward_batch import ScheduledTokens
from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE, PageAllocator, pages_for
from tunery.gateway.engine.scheduling.sequence import Sequence
from tunery.gateway.engine.scheduling.waiting_queue import WaitingQueue
from tunery.registry.errors import TuneryError, Unavailable

__all__ = ["SCORED", "STARVED_AFTER", "Scheduler"]

Obstacle = Literal["adapter", "twin", "room"]

STARVED_AFTER = 1.0
"""Seconds of waiting for room, in the batch or among the adapters, after which those in the way make room."""

SCORED = 64
"""Prompt tokens of a step whose logits are wanted at the most: a row of them is the vocabulary's size, so they rule the memory."""

Adapters = tuple[tuple[ServedAdapter, float], ...]


@dataclass(slots=True)
class _Round:
    """One round of admissions: who `failed`, which tenants are `closed` to it, and the adapters `kept` from those who come later.

    No tenant may have more of the batch than `share`, in sequences by its weight: what room is left is for somebody who has less.
    """

    now: float
    ahead: Counter[str]
    failed: list[tuple[Sequence, TuneryError]] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)
    kept: list[ServedAdapter] = field(default_factory=list)
    share: float = math.inf


class Scheduler:
    """Waiting and running sequences. `token_budget` is the most tokens of a step."""

    def __init__(
        self,
        pages: PageAllocator,
        residency: Residency[ServedAdapter],
        *,
        max_batch: int,
        token_budget: int,
        fairness: VirtualTokenCounter | None = None,
    ) -> None:
        self._pages = pages
        self._residency = residency
        self._max_batch = max_batch
        self._token_budget = token_budget
        self._fairness = fairness or VirtualTokenCounter()
        self._waiting = WaitingQueue(self._fairness)
        self._by_id: dict[str, Sequence] = {}
        self._active: Counter[str] = Counter()
        self._begun: dict[bytes, Sequence] = {}
        self._starved: Sequence | None = None
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
        if sequence.tenant not in self._active:
            self._fairness.arrive(sequence.tenant, self._active)
        self._active[sequence.tenant] += 1
        self._by_id[sequence.id] = sequence
        self._waiting.add(sequence)
        if self._starved is None:
            for part in sequence.composition:
                self._residency.want(part.source)

    def admit(self, now: float) -> list[tuple[Sequence, TuneryError]]:
        """Start every waiting sequence that can start; return those whose adapters cannot be had, and why."""
        here = _Round(now, self._ahead())
        self._find_starved(now)
        starved = self._starved
        room = starved is None or self._relieve(starved, here)
        for sequence in self._waiting.in_turn(now, here.ahead, here.closed):
            if sequence is not starved and (room or not sequence.composition):
                self._try(sequence, here)
        for adapter in here.kept:
            self._residency.release(adapter.source.digest)
            self._residency.want(adapter.source)
        return here.failed

    def plan(self, now: float) -> list[ScheduledTokens]:
        """Choose the next step's tokens, sorted by adapter so that each adapter's rows are neighbours."""
        budget, scored = self._token_budget, SCORED
        chosen: list[ScheduledTokens] = []
        turns = {tenant: self._fairness.paid(tenant) for tenant in {s.tenant for s in self.running}}
        for sequence in sorted(self.running, key=lambda s: (not s.decoding, turns[s.tenant], s.started)):
            if sequence not in self.running:
                continue  # taken out for one before it
            count = min(sequence.left, budget, scored if sequence.scoring else budget)
            if count > 0 and self._grow(sequence, sequence.computed + count, now):
                chosen.append(ScheduledTokens(sequence, count))
                budget -= count
                scored -= count if sequence.scoring else 0
        chosen = [item for item in chosen if item.sequence.pages]
        return sorted(chosen, key=lambda item: item.sequence.digest)

    def advance(self, item: ScheduledTokens) -> None:
        """Note that a scheduled piece has been computed."""
        sequence, end = item.sequence, item.sequence.computed + item.count
        if sequence.decoding:
            self._fairness.charge(sequence.tenant, output=1)
        else:
            self._fairness.charge(sequence.tenant, prompt=max(0, end - max(sequence.paid, sequence.computed)))
        sequence.paid = max(sequence.paid, end)
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
            self._waiting.remove(sequence)
        self._drop(sequence)

    def find(self, request_id: str) -> Sequence | None:
        """The live sequence of a request."""
        return self._by_id.get(request_id)

    def running_adapters(self) -> dict[str, int]:
        """How many sequences run on each adapter, by `tenant/name`; the bare base is left out."""
        return _named(self.running)

    def waiting_adapters(self) -> dict[str, int]:
        """How many sequences wait for each adapter."""
        return _named(self._waiting)

    # -- waiting ----------------------------------------------------------------------------------------------------------

    def _ahead(self) -> Counter[str]:
        """By tenant, the tokens of running prompts that are not paid for yet."""
        ahead: Counter[str] = Counter()
        for sequence in self.running:
            ahead[sequence.tenant] += sequence.unpaid
        return ahead

    def _try(self, sequence: Sequence, here: _Round) -> None:
        """Start a sequence if it can start; else see to it that nobody behind it takes what it waits for."""
        tenant = sequence.tenant
        if self._share(tenant, 1) > here.share:
            here.closed.add(tenant)
            return
        try:
            obstacle = self._start(sequence, here)
        except TuneryError as error:
            self._fail(sequence, error, here)
            return
        if obstacle is None:
            here.ahead[tenant] += sequence.unpaid
        elif obstacle == "room":
            here.closed.add(tenant)
            if here.now - sequence.since > STARVED_AFTER:
                here.share = min(here.share, self._share(tenant, 0))

    def _share(self, tenant: str, more: int) -> float:
        """What a tenant would have of the batch with so many `more` sequences, by its weight."""
        return (sum(s.tenant == tenant for s in self.running) + more) / self._fairness.weight(tenant)

    def _fail(self, sequence: Sequence, error: TuneryError, here: _Round) -> None:
        self._waiting.remove(sequence)
        self._drop(sequence)
        here.failed.append((sequence, error))

    def _drop(self, sequence: Sequence) -> None:
        """Forget a sequence altogether."""
        del self._by_id[sequence.id]
        if sequence is self._starved:
            self._starved = None
        self._active[sequence.tenant] -= 1
        if not self._active[sequence.tenant]:
            del self._active[sequence.tenant]
            self._fairness.leave(sequence.tenant, self._active)

    # -- starving ---------------------------------------------------------------------------------------------------------

    def _find_starved(self, now: float) -> None:
        """Who has waited longest for room among the adapters, once that is too long, comes first until it runs."""
        if self._starved is None:
            late = (s for s in self._waiting if s.missed and now - s.since > STARVED_AFTER and not self._coming(s))
            self._starved = min(late, key=lambda s: s.since, default=None)

    def _relieve(self, starved: Sequence, here: _Round) -> bool:
        """Start the starved sequence, or take those out who are in its way; whether others may go on to adapters meanwhile."""
        self._try(starved, here)
        if starved is not self._starved or self._coming(starved):
            return True
        own = {part.source.digest for part in starved.composition}
        users = [s for s in self.running if {part.source.digest for part in s.composition} - own]
        # Whoever has hardly begun, or has not said a word yet, would have run for nothing, and perhaps again and again.
        ready = [s for s in users if here.now - s.since > STARVED_AFTER and len(s.tokens) > s.resumed]
        if ready:
            eldest = min(ready, key=lambda s: s.since)
            for sequence in [s for s in ready if s.digest == eldest.digest]:
                self._preempt(sequence, here.now)
        elif not (users or self._residency.busy):
            self._fail(starved, _too_much(starved), here)
        return False

    def _coming(self, sequence: Sequence) -> bool:
        """Whether all adapters of a sequence are in memory or being loaded."""
        return all(self._residency.is_coming(part.source.digest) for part in sequence.composition)

    # -- starting ---------------------------------------------------------------------------------------------------------

    def _start(self, sequence: Sequence, here: _Round) -> Obstacle | None:
        """Give a sequence its adapters, a place in the batch and its first pages, or say what stands in the way."""
        adapters = self._hold(sequence, here)
        if adapters is None:
            return "adapter"
        obstacle = self._place(sequence, here.now)
        if obstacle is not None:
            here.kept += (adapter for adapter, _ in adapters)
            return obstacle
        self._admissions += 1
        sequence.begin(adapters, self._admissions, here.now)
        self._waiting.remove(sequence)
        self.running.append(sequence)
        if sequence is self._starved:
            self._starved = None
        return None

    def _hold(self, sequence: Sequence, here: _Round) -> Adapters | None:
        """Hold all adapters of a sequence; where some are missing they begin to load, and the others are kept for this round."""
        held: dict[int, ServedAdapter] = {}
        try:
            # Those in memory first, so that loading the others cannot cost them.
            for index in sorted(
                range(len(sequence.composition)), key=lambda i: not self._resident(sequence.composition[i])
            ):
                adapter = self._residency.hold(sequence.composition[index].source, hit=not sequence.asked)
                if adapter is not None:
                    held[index] = adapter
            sequence.asked = True
            if len(held) == len(sequence.composition):
                adapters = tuple((held[index], part.weight) for index, part in enumerate(sequence.composition))
                if len(adapters) > 1 or any(weight != 1.0 for _, weight in adapters):
                    check_composition(held.values())
                return adapters
        except TuneryError:
            here.kept += held.values()
            raise
        sequence.missed = True
        here.kept += held.values()
        return None

    def _resident(self, part: WeightedAdapter) -> bool:
        return self._residency.is_resident(part.source.digest)

    def _place(self, sequence: Sequence, now: float) -> Obstacle | None:
        """Take pages, those of a known beginning first, and a place in the batch, from tenants with more than their share if need be."""
        shareable = sequence.shareable if self._pages.reuse else 0
        found = self._pages.find(sequence.keys[:shareable])
        if len(found) < shareable and sequence.keys[len(found)] in self._begun:
            # Somebody is computing the very page that comes next: the wait is shorter than the work.
            return "twin"
        total = pages_for(len(sequence.tokens))
        victims = self._victims(sequence.tenant, total, found)
        if victims is None:
            return "room"
        for victim in victims:
            self._preempt(victim, now)
        self._pages.share(found)
        sequence.pages = found + self._pages.take(total - len(found))
        sequence.computed = len(found) * PAGE_SIZE
        sequence.paid = max(sequence.paid, sequence.computed)
        if not sequence.started:
            sequence.cached = sequence.computed
            self.prefix_queries += sequence.prompt_length
            self.prefix_hits += sequence.computed
        for key in sequence.keys[len(found) : shareable]:
            self._begun.setdefault(key, sequence)
        return None

    def _victims(self, tenant: str, total: int, found: list[int]) -> list[Sequence] | None:
        """Who must go so that one more sequence of `tenant` fits, with `total` pages of which some were `found`.

        None when nobody runs beyond their share.
        """
        victims: list[Sequence] = []
        candidates = sorted(self.running, key=lambda s: s.started)
        running = Counter(s.tenant for s in candidates)
        wanted = (running[tenant] + 1) / self._fairness.weight(tenant)
        room, spare = self._max_batch - len(self.running), self._pages.available - self._pages.idle(found)
        while room < 1 or spare < total - len(found):
            most = max(
                (s.tenant for s in candidates), key=lambda t: running[t] / self._fairness.weight(t), default=tenant
            )
            if most == tenant or (running[most] - 1) / self._fairness.weight(most) < wanted:
                return None
            victim = next(s for s in reversed(candidates) if s.tenant == most)
            candidates.remove(victim)
            victims.append(victim)
            running[most] -= 1
            room, spare = room + 1, spare + self._pages.sole([page for page in victim.pages if page not in found])
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
        sequence.interrupt(now)
        self._waiting.add(sequence, first=True)
        self.preemptions += 1

    def _stop(self, sequence: Sequence) -> None:
        """Give back what a running sequence holds."""
        self.running.remove(sequence)
        for key in sequence.keys:
            if self._begun.get(key) is sequence:
                del self._begun[key]
        self._pages.release(sequence.pages)
        for adapter, _ in sequence.adapters:
            self._residency.release(adapter.source.digest)
        sequence.pages, sequence.adapters = [], ()


def _named(sequences: Iterable[Sequence]) -> dict[str, int]:
    return dict(Counter(name for s in sequences for name in {part.source.name for part in s.composition}))


def _too_much(sequence: Sequence) -> Unavailable:
    return Unavailable(
        f"{composition_title(sequence.composition)} does not fit into memory beside the adapters that are pinned: unload one of them, or raise "
        "adapter_budget_mb",
        code="adapter_too_large",
    )
