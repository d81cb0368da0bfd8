"""Admission: which waiting sequences join the running batch, and what is done for those that have waited too long.

A sequence needs its adapters in memory, a place in the batch and pages for its known tokens. Requests are visited in
the order of the tenants' virtual token counters (see fairness.py). One whose adapter is still loading lets others pass.
Where there is no room, a tenant below its share of the batch preempts one above it (see preemption.py).

The background is visited only when no other sequence waits. It preempts nobody, and it is preempted for whatever an
interactive sequence needs: a place, pages, or memory for adapters.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from tunery.gateway.engine.adapters.interface import ServedAdapter, check_composition
from tunery.gateway.engine.adapters.residency import Residency
from tunery.gateway.engine.composition import composition_title
from tunery.gateway.engine.scheduling.page_allocator import pages_for
from tunery.gateway.engine.scheduling.preemption import victims_for_adapters, victims_for_admission
from tunery.gateway.engine.scheduling.running_batch import RunningBatch
from tunery.gateway.engine.scheduling.sequence import HeldAdapters, Sequence
from tunery.gateway.engine.scheduling.waiting_queue import WaitingQueues
from tunery.registry.errors import TuneryError, Unavailable

__all__ = ["STARVED_AFTER", "Admission"]

STARVED_AFTER = 1.0
"""Seconds of waiting for room, in the batch or among the adapters, after which others are kept back
or preempted for it."""

Obstacle = Literal["adapter", "prefix", "room"]
"""What a sequence waits for: an adapter to be loaded, another sequence to compute a shared prefix,
or a place and pages."""


@dataclass(slots=True)
class _Round:
    """One round of admission.

    `kept` places are not for crowds. `uncharged` counts each tenant's tokens still to be charged for its running
    sequences. No more sequences are started for `closed` tenants, and none that would take a tenant's share of the batch
    above `max_share`: room that comes free is for tenants with less. The adapters in `reserved` are held to the end of
    the round, so that later requests do not evict them.
    """

    now: float
    uncharged: Counter[str]
    kept: int = 0
    failed: list[tuple[Sequence, TuneryError]] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)
    reserved: list[ServedAdapter] = field(default_factory=list)
    max_share: float = math.inf


class Admission:
    """Starts waiting sequences.

    At most one is `starved`: it has waited too long for its adapters and goes before all others. At most
    `background_slots` sequences of the background run.
    """

    def __init__(
        self,
        waiting: WaitingQueues,
        batch: RunningBatch,
        residency: Residency[ServedAdapter],
        *,
        background_slots: int,
        min_crowd: int = 0,
    ) -> None:
        self._waiting = waiting
        self._batch = batch
        self._residency = residency
        self._fairness = waiting.interactive.fairness
        self._background_slots = background_slots
        self._min_crowd = min_crowd
        self._left = 0
        """Places to keep in the next round; see `leave`."""
        self._starved: Sequence | None = None

    def announce(self, sequence: Sequence) -> None:
        """Let the adapters of a sequence that has just been queued load, unless a starved one needs the room.

        Those of the background load when its turn has come.
        """
        if self._starved is None and not sequence.background:
            for part in sequence.composition:
                self._residency.want(part.source)

    def leave(self, sequence: Sequence) -> None:
        """A running sequence has ended. Where its tenant has no other, its place is kept from crowds for one round: a
        client that sends one request after the other sends the next one now, which would preempt one of the crowd."""
        if self._min_crowd and not sequence.background:
            self._left += all(s.tenant != sequence.tenant for s in self._batch.sequences)

    def forget(self, sequence: Sequence) -> None:
        """A sequence is finished or cancelled."""
        if sequence is self._starved:
            self._starved = None

    def admit(self, now: float) -> list[tuple[Sequence, TuneryError]]:
        """Start every waiting sequence that can start; return those that never can, with the error of their adapters.

        The latter are taken out of the waiting queue.
        """
        current = _Round(now, self._uncharged(), kept=self._left)
        self._left = 0
        self._find_starved(now)
        starved = self._starved
        room = starved is None or self._relieve(starved, current)
        for sequence in self._waiting.interactive.by_priority(now, current.uncharged, current.closed):
            if sequence is not starved and (room or not sequence.composition):
                self._try(sequence, current)
        if not self._waiting.interactive and self._starved is None:
            self._admit_background(current)
        for adapter in current.reserved:
            self._residency.release(adapter.source.digest)
            self._residency.want(adapter.source)
        return current.failed

    def _uncharged(self) -> Counter[str]:
        uncharged: Counter[str] = Counter()
        for sequence in self._batch.sequences:
            if not sequence.background:
                uncharged[sequence.tenant] += sequence.uncharged
        return uncharged

    def _share(self, tenant: str, more: int) -> float:
        """A tenant's running sequences, plus `more`, divided by its weight."""
        running = sum(s.tenant == tenant and not s.background for s in self._batch.sequences)
        return self._fairness.share(tenant, running + more)

    def _try(self, sequence: Sequence, current: _Round) -> None:
        """Start a sequence if possible; if it waits for room, keep that from those behind it."""
        tenant = sequence.tenant
        if self._share(tenant, 1) > current.max_share:
            current.closed.add(tenant)
            return
        try:
            obstacle = self._start(sequence, current)
        except TuneryError as error:
            self._fail(sequence, error, current)
            return
        if obstacle is None:
            current.uncharged[tenant] += sequence.uncharged
        elif obstacle == "adapter":
            self._clear_background(sequence, current.now)
        elif obstacle == "room":
            current.closed.add(tenant)
            if current.now - sequence.since > STARVED_AFTER:
                current.max_share = min(current.max_share, self._share(tenant, 0))

    def _clear_background(self, sequence: Sequence, now: float) -> None:
        """Preempt the background where its adapters take the memory that an interactive sequence's need."""
        if not self._adapters_coming(sequence):
            for victim in [s for s in self._batch.sequences if s.background]:
                if victim.adapter_digests - sequence.adapter_digests:
                    self._batch.preempt(victim, now)

    def _fail(self, sequence: Sequence, error: TuneryError, current: _Round) -> None:
        self._waiting.of(sequence).remove(sequence)
        self.forget(sequence)
        current.failed.append((sequence, error))

    def _admit_background(self, current: _Round) -> None:
        """Start sequences of the background in what is free; the first that finds no room keeps it from the others."""
        for sequence in self._waiting.background.by_priority(current.now, {}, ()):
            if self._try_background(sequence, current) == "room":
                return

    def _try_background(self, sequence: Sequence, current: _Round) -> Obstacle | None:
        if sum(s.background for s in self._batch.sequences) >= self._background_slots:
            return "room"
        try:
            return self._start(sequence, current)
        except TuneryError as error:
            self._fail(sequence, error, current)
            return None

    # -- starting a sequence -------------------------------------------------------------------------------------------

    def _start(self, sequence: Sequence, current: _Round) -> Obstacle | None:
        """Start a sequence, or return what it waits for. Raises what loading one of its adapters ended with."""
        adapters = self._hold_adapters(sequence, current)
        if adapters is None:
            return "adapter"
        obstacle = self._start_with(sequence, adapters, current)
        if obstacle is not None:
            current.reserved += (adapter for adapter, _ in adapters)
        else:
            self.forget(sequence)
        return obstacle

    def _start_with(self, sequence: Sequence, adapters: HeldAdapters, current: _Round) -> Obstacle | None:
        """Preempt for a place and pages if the tenant is below its share, and start.

        The background starts only where there is room for its whole output, without preempting.
        """
        batch, now = self._batch, current.now
        cached = batch.find_prefix(sequence)
        if cached is None:
            return "prefix"
        if sequence.background:
            if not batch.has_room(pages_for(sequence.max_length) - len(cached), cached):
                return "room"
            batch.start(sequence, adapters, cached, now)
            return None
        victims = victims_for_admission(
            sequence.tenant,
            batch.sequences,
            self._fairness,
            batch.pages,
            max_batch=batch.max_size - self._kept_from(sequence.tenant, current),
            new_pages=pages_for(len(sequence.tokens)) - len(cached),
            cached=cached,
        )
        if victims is None:
            return "room"
        for victim in victims:
            batch.preempt(victim, now)
        batch.start(sequence, adapters, cached, now)
        return None

    def _kept_from(self, tenant: str, current: _Round) -> int:
        """How many places of the batch a tenant may not have in this round: those that are kept from crowds."""
        return current.kept if current.kept and self._share(tenant, 0) >= self._min_crowd else 0

    def _hold_adapters(self, sequence: Sequence, current: _Round) -> HeldAdapters | None:
        """Hold all adapters of a sequence.

        If one is missing, start loading it, reserve the others for this round, return None.
        """
        parts = sequence.composition
        held: dict[int, ServedAdapter] = {}
        try:
            # Resident ones first, so that loading the others cannot evict them.
            for index in sorted(range(len(parts)), key=lambda i: not self._is_resident(parts[i].source.digest)):
                adapter = self._residency.hold(parts[index].source, hit=not sequence.adapters_requested)
                if adapter is not None:
                    held[index] = adapter
            sequence.adapters_requested = True
            if len(held) == len(parts):
                sequence.note_loaded(current.now)
                adapters = tuple((held[index], part.weight) for index, part in enumerate(parts))
                if len(adapters) > 1 or any(weight != 1.0 for _, weight in adapters):
                    check_composition(held.values())
                return adapters
        except TuneryError:
            current.reserved += held.values()
            raise
        sequence.adapter_missed = True
        current.reserved += held.values()
        return None

    def _is_resident(self, digest: str) -> bool:
        return self._residency.is_resident(digest)

    # -- starvation ----------------------------------------------------------------------------------------------------

    def _find_starved(self, now: float) -> None:
        """Choose the sequence that has waited longest for adapter memory, once that is too long; it
        stays first until it runs."""
        idle = not self._waiting.interactive and all(s.background for s in self._batch.sequences)
        if self._starved is not None and self._starved.background and not idle:
            self._starved = None
        if self._starved is None:
            late = (
                s
                for s in (self._waiting.background if idle else self._waiting.interactive)
                if s.adapter_missed and now - s.since > STARVED_AFTER and not self._adapters_coming(s)
            )
            self._starved = min(late, key=lambda s: s.since, default=None)

    def _relieve(self, starved: Sequence, current: _Round) -> bool:
        """Start the starved sequence, or preempt those that hold other adapters; whether others may
        start on adapters too."""
        if starved.background:
            self._try_background(starved, current)
        else:
            self._try(starved, current)
        if starved is not self._starved or self._adapters_coming(starved):
            return True
        blocking = [s for s in self._batch.sequences if s.adapter_digests - starved.adapter_digests]
        victims = victims_for_adapters(blocking, current.now)
        for victim in victims:
            self._batch.preempt(victim, current.now)
        if not (blocking or self._residency.busy):
            self._fail(starved, _too_large(starved), current)
        return False

    def _adapters_coming(self, sequence: Sequence) -> bool:
        """Whether all adapters of a sequence are in memory or being loaded."""
        return all(self._residency.is_coming(digest) for digest in sequence.adapter_digests)


def _too_large(sequence: Sequence) -> Unavailable:
    return Unavailable(
        f"{composition_title(sequence.composition)} does not fit into memory beside the adapters that are pinned: unload one "
        "of them, or raise adapter_budget_mb",
        code="adapter_too_large",
    )
