"""Residency against a model of it, in any order of calls."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.gateway.engine.adapters.residency_harness import ResidencyHarness, Weights
from tunery.gateway.engine.adapters.loader import MAX_LOADS
from tunery.registry.errors import ArtifactRefused, StorageFailed, TuneryError

COUNT = 6
NUMBERS = st.integers(0, COUNT - 1)


class AnyOrder(RuleBasedStateMachine):
    """Any order of calls, loads that end at any time, files that break and heal, sizes that files lie about."""

    @initialize(
        budget=st.integers(2, 8),
        ram=st.integers(0, 5),
        sizes=st.lists(st.integers(1, 4), min_size=COUNT, max_size=COUNT),
        disk=st.lists(st.none() | st.integers(0, 5), min_size=COUNT, max_size=COUNT),
    )
    def begin(self, budget: int, ram: int, sizes: list[int], disk: list[int | None]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.w = ResidencyHarness(Path(self.folder.name), budget, ram=ram)
        self.w.sizes = dict(enumerate(sizes))
        self.w.disk = dict(enumerate(disk))
        self.ram = ram
        self.holders: Counter[int] = Counter()
        self.pinned: set[int] = set()
        self.leaving: set[int] = set()
        self.order: list[int] = []  # resident, least recently used first
        self.wants: list[int] = []  # in order; a use ends them
        self.failed: dict[int, tuple[TuneryError, float]] = {}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def idle(self) -> list[int]:
        return [number for number in self.order if not self.holders[number] and number not in self.pinned]

    def gone(self, candidates: list[int], claimant: int) -> None:
        """What a claim evicted are the first of `candidates`, and the load they went for is under way."""
        gone = [number for number in self.order if number not in self.w.resident]
        assert gone == candidates[: len(gone)]
        if gone:
            assert f"d{claimant}" in self.w.executor.digests()
            assert self.w.residency.bytes + self.w.sizes[gone[-1]] > self.w.budget  # not one more than was needed
        self.order = [number for number in self.order if number not in gone]

    def attempt(self, number: int) -> tuple[Weights | None, TuneryError | None]:
        try:
            return self.w.hold(number), None
        except TuneryError as error:
            return None, error

    def used(self, number: int) -> None:
        self.order.remove(number)
        self.order.append(number)

    @rule(number=NUMBERS)
    def hold(self, number: int) -> None:
        reads, here = len(self.w.reads), number in self.order
        error, since = self.failed.get(number, (None, 0.0))
        held, raised = self.attempt(number)
        if raised is not None:
            assert not here
            assert len(self.w.reads) == reads
            if raised.code == "adapter_too_large":
                pinned = sum(self.w.sizes[one] for one in self.pinned)
                assert max(self.w.sizes[number], self.w.disk[number] or 0) + pinned > self.w.budget
            else:
                assert raised is error or not isinstance(error, ArtifactRefused)
                self.failed[number] = raised, self.w.now
            return
        lasting = isinstance(error, ArtifactRefused) or (error is not None and since == self.w.now)
        assert here or not lasting
        assert (held is not None) == here
        if here:
            self.holders[number] += 1
            self.used(number)
            self.wants = [one for one in self.wants if one != number]
        else:
            self.gone(self.idle(), number)
            assert self.w.residency.busy or any(self.holders.values())  # else it would wait for ever

    @precondition(lambda self: any(self.holders.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.holders.elements())))
        self.w.residency.release(f"d{number}")
        self.holders[number] -= 1
        if number in self.leaving and not self.holders[number]:
            self.leaving.discard(number)
            self.order.remove(number)
        else:
            self.used(number)

    @rule(number=NUMBERS)
    def want(self, number: int) -> None:
        later = self.wants[self.wants.index(number) + 1 :] if number in self.wants else self.wants
        candidates = [one for one in self.idle() if one not in later]
        self.wants = [*(one for one in self.wants if one != number), number]
        self.w.want(number)
        self.gone(candidates, number)

    @rule(number=NUMBERS)
    def unload(self, number: int) -> None:
        size = self.w.sizes[number] if number in self.order else 0
        assert self.w.residency.unload(f"d{number}") == size
        self.pinned.discard(number)
        if self.holders[number]:
            self.leaving.add(number)
        elif number in self.order:
            self.order.remove(number)
        mine = [one for one in (*self.w.hosts, *self.w.device) if one.source.digest == f"d{number}"]
        assert not mine or self.holders[number] or self.w.residency.busy

    @rule(number=NUMBERS)
    def pin(self, number: int) -> None:
        if number in self.order:
            self.w.residency.pin(f"d{number}")
            self.pinned.add(number)
            self.leaving.discard(number)
            self.used(number)

    @rule(number=NUMBERS)
    def forget(self, number: int) -> None:
        self.w.residency.forget(f"d{number}")
        self.failed.pop(number, None)
        self.leaving.discard(number)

    @precondition(lambda self: self.w.executor.tasks)
    @rule()
    def work(self) -> None:
        self.w.executor.run()

    @rule()
    def poll(self) -> None:
        safe = set(self.order) - set(self.idle())
        self.w.residency.poll()
        now = self.w.resident
        assert safe <= set(now)
        for number in now:
            if number not in self.order:
                self.failed.pop(number, None)
        self.order = [*(n for n in self.order if n in now), *(n for n in now if n not in self.order)]

    @rule(number=NUMBERS, error=st.sampled_from([ArtifactRefused, StorageFailed, ValueError]), late=st.booleans())
    def break_(self, number: int, error: type[Exception], late: bool) -> None:
        where = self.w.unplaceable if late and error is StorageFailed else self.w.broken
        where[number] = error("broken")

    @rule(number=NUMBERS)
    def heal(self, number: int) -> None:
        self.w.broken.pop(number, None)
        self.w.unplaceable.pop(number, None)

    @rule(seconds=st.sampled_from([0.5, 1.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.w.now += seconds

    @invariant()
    def budgets_are_hard(self) -> None:
        if hasattr(self, "w"):
            assert 0 <= self.w.residency.bytes <= self.w.budget
            assert 0 <= self.w.residency.ram_bytes <= self.ram
            assert self.w.fullest <= self.w.budget

    @invariant()
    def what_it_says_is_so(self) -> None:
        if not hasattr(self, "w"):
            return
        listed = self.w.residency.resident()
        assert self.w.resident == self.order
        assert [one.running for one in listed] == [self.holders[number] for number in self.order]
        assert {int(one.digest[1:]) for one in listed if one.pinned} == self.pinned
        assert [one.bytes for one in listed] == [self.w.sizes[number] for number in self.order]
        total = sum(one.bytes for one in listed)
        assert total <= self.w.residency.bytes
        if not self.w.residency.busy:
            assert total == self.w.residency.bytes == sum(one.size for one in self.w.device)
            assert self.w.residency.ram_bytes == sum(one.size for one in self.w.hosts)

    @invariant()
    def nothing_is_loaded_twice_at_once(self) -> None:
        if hasattr(self, "w"):
            loading = self.w.executor.digests()
            assert len(loading) <= MAX_LOADS
            assert len(loading) == len(set(loading))
            assert not set(loading) & {f"d{number}" for number in self.order}


AnyOrder.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestAnyOrder = pytest.mark.slow(AnyOrder.TestCase)
