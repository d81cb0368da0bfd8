"""Which adapter is loaded next: tenants take turns, even if one came first with many; waiting for
an adapter starves nobody."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from tests.gateway.engine.adapters.residency_harness import SIZE, ResidencyHarness
from tunery.gateway.engine.adapters.loader import MAX_LOADS
from tunery.gateway.engine.composition import WeightedAdapter
from tunery.gateway.engine.messages import Generate
from tunery.gateway.engine.sampling_params import SamplingParams
from tunery.gateway.engine.scheduling.admission import STARVED_AFTER
from tunery.gateway.engine.scheduling.page_allocator import PageAllocator
from tunery.gateway.engine.scheduling.scheduler import Scheduler
from tunery.gateway.engine.scheduling.sequence import Sequence

COLD = 200


class LoadingHarness:
    """A scheduler over adapters whose loads end when the test says so."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.w = ResidencyHarness(folder, budget)
        residency = cast(Any, self.w.residency)
        self.scheduler = Scheduler(
            PageAllocator(1000, prefix_caching=False), residency, max_batch=2 * COLD, token_budget=16 * COLD
        )
        self.ids = iter(range(10 * COLD))

    def request(self, tenant: str, *numbers: int) -> Sequence:
        composition = tuple(WeightedAdapter(self.w.source(number)) for number in numbers)
        sampling = SamplingParams(max_tokens=4)
        request = Generate(
            id=str(next(self.ids)), prompt=(1,) * 8, sampling=sampling, composition=composition, tenant=tenant
        )
        sequence = Sequence(request, eos_ids=frozenset(), now=self.w.now)
        self.scheduler.add(sequence)
        return sequence

    def step(self, seconds: float = 0.01) -> None:
        """What the engine does in a step, and a load beside it."""
        self.w.residency.poll()
        assert self.scheduler.admit(self.w.now) == []
        if self.w.executor.tasks:
            self.w.executor.run()
        self.w.now += seconds


@pytest.fixture
def harness(tmp_path: Path) -> LoadingHarness:
    return LoadingHarness(tmp_path, 2 * COLD * SIZE)


def test_one_tenants_cold_adapters_delay_anothers_by_the_few_loads_that_had_begun(harness: LoadingHarness) -> None:
    for number in range(COLD):
        harness.request("flood", number)
    harness.step()
    other = harness.request("other", COLD)
    steps = 0
    while other not in harness.scheduler.running:
        harness.step()
        steps += 1
    assert steps <= MAX_LOADS + 2  # its own, and one step to see that
    while harness.scheduler.waiting:
        harness.step()
    assert Counter(harness.w.reads) == dict.fromkeys(range(COLD + 1), 1)


def test_two_floods_take_turns(harness: LoadingHarness) -> None:
    for number in range(COLD // 2):
        harness.request("one", number)
    for number in range(COLD // 2, COLD):
        harness.request("two", number)
    for _ in range(COLD // 2):
        harness.step()
    served = Counter(sequence.tenant for sequence in harness.scheduler.running)
    assert abs(served["one"] - served["two"]) <= MAX_LOADS


def test_no_running_request_is_preempted_for_waiting_ones(harness: LoadingHarness) -> None:
    running = harness.request("early", 2 * COLD - 1)
    while running not in harness.scheduler.running:
        harness.step()
    for number in range(COLD):
        harness.request("flood", number)
    while harness.scheduler.waiting:
        harness.step(STARVED_AFTER)
    assert harness.scheduler.stats.preemptions == 0


def test_a_composition_that_lacks_room_for_both_gets_it(tmp_path: Path) -> None:
    harness = LoadingHarness(tmp_path, 2 * SIZE)
    running = harness.request("early", 1)
    while running not in harness.scheduler.running:
        harness.step()
    running.append(5)  # who has not said a word yet is left alone
    both = harness.request("late", 2, 3)
    while both not in harness.scheduler.running:
        assert harness.w.now < 3 * STARVED_AFTER
        harness.step()
    assert harness.scheduler.running == [both]
    assert harness.scheduler.stats.preemptions == 1
