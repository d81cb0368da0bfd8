"""Owns who runs in the next step; refuses to touch tensors' contents.

Continuous batching (Orca, OSDI 2022): sequences join and leave between steps. First come first served, except that a
sequence whose adapter is still on its way lets others pass; one that has waited long for room stops the others' admission, so
that the adapters in its way drain.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from tunery.gateway.engine.adapter import LoadedAdapter
from tunery.gateway.engine.kv_cache import KVCache
from tunery.gateway.engine.residency import Residency
from tunery.gateway.engine.sequence import Sequence
from tunery.registry.errors import TuneryError

__all__ = ["CHUNK", "STARVED_AFTER", "Running", "Scheduled", "Scheduler"]

CHUNK = 512
"""A prompt is computed in pieces that end at multiples of CHUNK tokens, wherever its neighbours end."""

STARVED_AFTER = 1.0
"""Seconds at the head of the queue after which nobody else is admitted first."""


@dataclass(slots=True)
class Running:
    """A sequence that has pages and its adapter."""

    sequence: Sequence
    adapter: LoadedAdapter | None


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`count` more tokens of a running sequence go through the model in the next step."""

    running: Running
    count: int


class Scheduler:
    """Waiting and running sequences."""

    def __init__(self, cache: KVCache, residency: Residency, *, max_batch: int, token_budget: int) -> None:
        self._cache = cache
        self._residency = residency
        self._max_batch = max_batch
        self._token_budget = token_budget
        self.waiting: deque[Sequence] = deque()
        self.running: list[Running] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run now."""
        return not self.running

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def admit(self, now: float) -> list[tuple[Sequence, TuneryError]]:
        """Start every waiting sequence that can start; return those whose adapter could not be loaded, and why."""
        failed: list[tuple[Sequence, TuneryError]] = []
        kept: deque[Sequence] = deque()
        while self.waiting:
            sequence = self.waiting.popleft()
            try:
                started = self._start(sequence)
            except TuneryError as error:
                failed.append((sequence, error))
                continue
            if not started:
                kept.append(sequence)
                if now - sequence.arrived > STARVED_AFTER or len(self.running) >= self._max_batch:
                    break
        self.waiting.extendleft(reversed(kept))
        return failed

    def plan(self) -> list[Scheduled]:
        """Choose the next step's tokens: one of every decoding sequence, then prompts within the token budget.

        Sorted by adapter, so that each adapter's rows are neighbours.
        """
        budget = self._token_budget
        chosen: list[Scheduled] = []
        for running in sorted(self.running, key=lambda r: len(r.sequence.tokens) - r.sequence.computed > 1):
            left = len(running.sequence.tokens) - running.sequence.computed
            count = min(left, CHUNK - running.sequence.computed % CHUNK)
            if chosen and count > budget:
                break
            chosen.append(Scheduled(running, count))
            budget -= count
        return sorted(chosen, key=lambda scheduled: scheduled.running.sequence.digest)

    def finish(self, sequence: Sequence) -> None:
        """Free what a running or waiting sequence holds; harmless when it is neither."""
        for index, running in enumerate(self.running):
            if running.sequence is sequence:
                del self.running[index]
                if sequence.slots is not None:
                    self._cache.release(sequence.slots)
                if running.adapter is not None:
                    self._residency.release(sequence.digest)
                return
        if sequence in self.waiting:
            self.waiting.remove(sequence)

    def find(self, request_id: str) -> Sequence | None:
        """The live sequence of a request."""
        everyone: Iterable[Sequence] = (*(running.sequence for running in self.running), *self.waiting)
        return next((sequence for sequence in everyone if sequence.id == request_id), None)

    def running_adapters(self) -> dict[str, int]:
        """How many sequences run on each adapter, by `tenant/name`; the bare base is left out."""
        return dict(Counter(r.sequence.adapter.name for r in self.running if r.sequence.adapter))

    def waiting_adapters(self) -> dict[str, int]:
        """How many sequences wait for each adapter."""
        return dict(Counter(s.adapter.name for s in self.waiting if s.adapter))

    def _start(self, sequence: Sequence) -> bool:
        """Give a sequence its pages and adapter, if both can be had now."""
        adapter = None
        room = len(self.running) < self._max_batch and self._cache.fits(sequence.most)
        if sequence.adapter is not None:
            if not room and self._residency.is_resident(sequence.digest):
                return False
            # Also without room: the load begins while others run.
            adapter = self._residency.hold(sequence.adapter, hit=not sequence.missed)
            if adapter is None:
                sequence.missed = True
                return False
        if not room:
            if adapter is not None:
                self._residency.release(sequence.digest)
            return False
        sequence.slots = self._cache.allocate(sequence.most)
        self.running.append(Running(sequence, adapter))
        return True
