"""The scheduler: no request is lost or runs twice, budgets hold, tenants get their shares, and
preemption changes no output."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.gateway.engine.hypothesis_settings import often
from tests.gateway.engine.scheduling.scheduler_harness import SchedulerHarness, composition
from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE


def words(length: int, *, seed: int = 0) -> list[int]:
    """A prompt that shares nothing with one of another seed."""
    return [(seed * 7919 + 31 * at + at * at) % 1000 for at in range(length)]


def test_batch_and_budget_are_never_exceeded_and_every_request_finishes() -> None:
    harness = SchedulerHarness(max_batch=3, token_budget=20, pages=30)
    for number in range(10):
        harness.submit(str(number), words(5 + 6 * number, seed=number), 4 + number, parts=composition(number % 3))
    harness.run()


def test_within_a_tenant_the_first_comes_first() -> None:
    harness = SchedulerHarness(max_batch=2)
    names = [str(number) for number in range(9)]
    for name in names:
        harness.submit(name, words(10, seed=int(name)), 3)
    harness.run()
    assert harness.started == names
    assert sorted(names, key=lambda name: harness.first[name]) == names


def test_a_request_whose_adapter_is_on_its_way_lets_others_pass() -> None:
    harness = SchedulerHarness(max_batch=4, slow=True)
    cold = harness.submit("cold", words(5), 3, parts=composition(1))
    harness.submit("base", words(5, seed=1), 3)
    harness.step()
    assert harness.started == ["base"]
    assert cold.adapter_missed
    harness.slow = False
    harness.run()


def test_a_long_prompt_is_cut_and_does_not_hold_up_those_who_decode() -> None:
    harness = SchedulerHarness(token_budget=16)
    harness.submit("decoding", words(4), 30)
    harness.step()
    harness.submit("long", words(150, seed=1), 2)
    before = len(harness.outputs["decoding"])
    for _ in range(8):
        harness.step()
    assert len(harness.outputs["decoding"]) == before + 8
    assert harness.outputs["long"] == []
    harness.run()


def test_the_second_request_with_a_prompt_computes_only_its_end() -> None:
    harness = SchedulerHarness()
    harness.submit("first", words(4 * PAGE_SIZE + 3), 2)
    harness.run()
    second = harness.submit("second", words(4 * PAGE_SIZE + 3), 2)
    other = harness.submit("other", words(4 * PAGE_SIZE + 3), 2, parts=composition(1))
    again = harness.submit("whole pages", words(4 * PAGE_SIZE), 2)
    harness.run()
    assert (second.cached, other.cached, again.cached) == (4 * PAGE_SIZE, 0, 3 * PAGE_SIZE)
    assert harness.scheduler.stats.prefix_hits == 7 * PAGE_SIZE


def test_equal_prompts_at_once_are_computed_once() -> None:
    harness = SchedulerHarness(token_budget=40)
    made = [harness.submit(str(number), words(5 * PAGE_SIZE + 1), 3) for number in range(6)]
    harness.run()
    assert sorted(one.cached for one in made) == [0] + [5 * PAGE_SIZE] * 5
    assert (
        harness.served[""] == 5 * PAGE_SIZE + 1 + 5 + 6 * 2
    )  # the prompt once, its last token by all, and two tokens each


def test_a_twin_goes_on_when_the_first_is_cancelled() -> None:
    harness = SchedulerHarness(token_budget=20)
    harness.submit("first", words(5 * PAGE_SIZE), 3)
    harness.step()
    harness.submit("twin", words(5 * PAGE_SIZE), 3)
    harness.step()
    harness.cancel("first")
    harness.run()


def test_where_pages_run_out_the_youngest_is_preempted_and_generates_the_same() -> None:
    harness = SchedulerHarness(pages=9, max_batch=4)
    for number in range(4):
        harness.submit(str(number), words(2 * PAGE_SIZE, seed=number), 40)
    harness.run()
    assert harness.scheduler.stats.preemptions > 0
    assert harness.started == ["0", "1", "2", "3"]


def test_a_shared_beginning_that_only_a_victim_holds_is_not_counted_as_room() -> None:
    # The flooder holds every page; the newcomer shares the flooder's prompt and needs more pages
    # than its eviction frees.
    harness = SchedulerHarness(pages=6, max_batch=8)
    harness.submit("flood-0", words(2 * PAGE_SIZE), 30, tenant="flood")
    harness.submit("flood-1", words(3 * PAGE_SIZE, seed=1), 30, tenant="flood")
    harness.step()
    harness.step()
    prompt = words(3 * PAGE_SIZE, seed=1)[: 2 * PAGE_SIZE] + words(3 * PAGE_SIZE, seed=2)
    harness.submit("new", prompt, 3, tenant="new")
    harness.run()


def test_a_request_larger_than_the_room_left_by_a_stream_of_small_ones_gets_its_turn() -> None:
    harness = SchedulerHarness(pages=10, max_batch=10)
    names = (str(number) for number in itertools.count())
    for tenant in "abc":
        harness.submit(next(names), words(2 * PAGE_SIZE, seed=ord(tenant)), 20, tenant=tenant)
    harness.step()
    harness.submit("large", words(9 * PAGE_SIZE, seed=99), 2, tenant="large")
    for step in range(600):
        if "large" in harness.first:
            break
        if step % 5 == 0:
            tenant = "abc"[step // 5 % 3]
            harness.submit(next(names), words(2 * PAGE_SIZE, seed=step), 20, tenant=tenant)
        harness.step()
    assert "large" in harness.first
    harness.run()


# -- tenants ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@often(60)
@given(
    prompt=st.integers(1, 250),
    count=st.integers(1, 60),
    requests=st.integers(8, 80),
    before=st.integers(0, 60),
    mine=st.integers(1, 50) | st.integers(51, 300),
    seconds=st.sampled_from([0.001, 0.05, 0.4]),
    prefix_caching=st.booleans(),
)
def test_a_flood_delays_another_tenants_first_token_by_two_steps_at_most(
    prompt: int, count: int, requests: int, before: int, mine: int, seconds: float, prefix_caching: bool
) -> None:
    harness = SchedulerHarness(max_batch=8, token_budget=64, pages=200, seconds=seconds, prefix_caching=prefix_caching)
    for number in range(requests):
        harness.submit(f"flood-{number}", words(prompt, seed=number), count, tenant="flood")
    for _ in range(before):
        harness.step()
    harness.submit("mine", words(mine, seed=-1), 5, tenant="me")
    arrived, own = harness.steps, math.ceil(mine / (64 - 7))  # up to seven others decode
    while "mine" not in harness.first:
        harness.step()
        # A prompt that is longer than a step has at least every other one.
        assert harness.steps <= arrived + 2 * own + 1
    harness.run()


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [4, 120])
@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}, {"a": 2.0, "b": 1.0, "c": 1.0}])
def test_weights_give_proportional_service(weights: dict[str, float], prompt: int) -> None:
    harness = SchedulerHarness(max_batch=12, token_budget=64, pages=300, weights=weights, prefix_caching=False)
    for number in range(600):
        for tenant in weights:
            harness.submit(f"{tenant}-{number}", words(prompt, seed=3 * number + ord(tenant)), 16, tenant=tenant)
    for _ in range(700):
        harness.step()
    assert set(weights) == {one.tenant for one in harness.scheduler.running}
    for tenant in weights:
        share = harness.served[tenant] / sum(harness.served.values())
        assert share == pytest.approx(weights[tenant] / sum(weights.values()), rel=0.15)


def test_a_tenant_that_was_away_has_saved_nothing_up() -> None:
    harness = SchedulerHarness(max_batch=4, prefix_caching=False)
    for number in range(60):
        harness.submit(f"a-{number}", words(20, seed=number), 20, tenant="a")
    for _ in range(150):
        harness.step()
    before = harness.served["a"]
    for number in range(60):
        harness.submit(f"b-{number}", words(20, seed=1000 + number), 20, tenant="b")
    for _ in range(100):
        harness.step()
    share = harness.served["b"] / (harness.served["b"] + harness.served["a"] - before)
    assert 0.4 <= share <= 0.6


# -- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@often(80)
@given(
    compositions=st.lists(st.lists(st.integers(0, 4), min_size=0, max_size=2, unique=True), min_size=2, max_size=30),
    sizes=st.lists(st.integers(1, 4), min_size=5, max_size=5),
    room=st.integers(2, 6),
    pinned=st.none() | st.integers(0, 4),
    count=st.integers(1, 80),
    tenants=st.integers(1, 3),
    seconds=st.sampled_from([0.01, 0.3]),
)
def test_with_room_for_fewer_adapters_than_are_asked_for_all_finish_that_ever_can(
    compositions: list[list[int]],
    sizes: list[int],
    room: int,
    pinned: int | None,
    count: int,
    tenants: int,
    seconds: float,
) -> None:
    harness = SchedulerHarness(
        adapters=room, max_batch=6, seconds=seconds, sizes={f"d{n}": size for n, size in enumerate(sizes)}
    )
    if pinned is not None and sizes[pinned] <= room:
        harness.submit("pin", words(3), 1, parts=composition(pinned))
        harness.run()
        harness.residency.pin(f"d{pinned}")
    else:
        pinned = None
    impossible = set()
    for number, parts in enumerate(compositions):
        harness.submit(
            str(number),
            words(3 + number, seed=number),
            count,
            tenant=str(number % tenants),
            parts=composition(*parts, weight=0.5),
        )
        needed = {*parts} if pinned is None else {*parts, pinned}
        if parts and sum(sizes[n] for n in needed) > room:
            impossible.add(str(number))
    harness.run(most=200 + len(compositions) * (count + 20 + int(1.5 / seconds)))
    assert harness.failed == dict.fromkeys(impossible, "adapter_too_large")


def test_a_composition_that_cannot_be_made_fails_alone() -> None:
    harness = SchedulerHarness()
    harness.submit("fine", words(5), 3, parts=composition(1))
    harness.submit("composed", words(5, seed=1), 3, parts=composition(1, 2))
    harness.run()
    harness.residency.hold(composition(2)[0].source).plain = False  # type: ignore[union-attr]
    harness.residency.release("d2")
    for name, parts in (
        ("refused", composition(1, 2)),
        ("weighted", composition(2, weight=0.5)),
        ("alone", composition(2)),
        ("other", composition(1, 3)),
    ):
        harness.submit(name, words(5, seed=2), 3, parts=parts)
    harness.run()
    assert harness.failed == dict.fromkeys(("refused", "weighted"), "unsupported_composition")


def test_a_stream_for_one_adapter_does_not_keep_another_out() -> None:
    harness = SchedulerHarness(adapters=1, max_batch=4, seconds=0.05)
    names = (str(number) for number in itertools.count())
    for _ in range(4):
        harness.submit(next(names), words(5), 20, tenant="a", parts=composition(1))
    harness.step()
    harness.submit("other", words(5), 5, tenant="a", parts=composition(2))
    for _ in range(200):
        if "other" in harness.first:
            break
        if harness.scheduler.waiting < 4:
            harness.submit(next(names), words(5), 20, tenant="a", parts=composition(1))
        harness.step()
    assert "other" in harness.first
    harness.run()


def test_a_hit_is_counted_once_a_request_and_only_when_nothing_was_waited_for() -> None:
    harness = SchedulerHarness(max_batch=1)
    harness.submit("cold", words(5), 3, parts=composition(1))
    harness.run()
    assert (harness.residency.loads["acme/a1"], harness.residency.hits["acme/a1"]) == (1, 0)
    for number in range(5):
        harness.submit(str(number), words(5, seed=number), 10, parts=composition(1))
    harness.run()
    assert harness.residency.hits["acme/a1"] == 5


# -- whatever happens -------------------------------------------------------------------------------------------------


class Traffic(RuleBasedStateMachine):
    """Requests of any kind come and go, adapters are unloaded under way, time passes; the harness checks every step."""

    @initialize(
        pages=st.integers(5, 20),
        prefix_caching=st.booleans(),
        batch=st.integers(1, 6),
        budget=st.integers(6, 40),
        adapters=st.integers(2, 4),
        weight=st.sampled_from([1.0, 2.5]),
        seconds=st.sampled_from([0.01, 0.6]),
        slots=st.integers(1, 6),
        min_crowd=st.sampled_from([0, 1, 4]),
    )
    def begin(
        self,
        pages: int,
        prefix_caching: bool,
        batch: int,
        budget: int,
        adapters: int,
        weight: float,
        seconds: float,
        slots: int,
        min_crowd: int,
    ) -> None:
        self.harness = SchedulerHarness(
            pages,
            prefix_caching,
            batch,
            budget,
            adapters=adapters,
            weights={"a": weight},
            seconds=seconds,
            background_slots=slots,
            min_crowd=min_crowd,
        )
        self.names = (str(number) for number in itertools.count())

    @rule(
        length=st.integers(1, 60),
        seed=st.integers(0, 2),
        count=st.integers(1, 40),
        tenant=st.sampled_from("abc"),
        parts=st.lists(st.integers(0, 3), max_size=2),
        background=st.booleans(),
    )
    def submit(self, length: int, seed: int, count: int, tenant: str, parts: list[int], background: bool) -> None:
        most = self.harness.pages * PAGE_SIZE
        length = min(length, most - 1)
        count = min(count, most - length)
        prompt = words(length, seed=seed)
        self.harness.submit(
            next(self.names), prompt, count, tenant=tenant, parts=composition(*parts), background=background
        )

    @rule(count=st.integers(1, 10))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.harness.step()

    @precondition(lambda self: self.harness.expected)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.harness.cancel(data.draw(st.sampled_from(sorted(self.harness.expected))))

    @rule(number=st.integers(0, 3))
    def unload(self, number: int) -> None:
        self.harness.residency.unload(f"d{number}")

    @rule()
    def slow_disk(self) -> None:
        self.harness.slow = not self.harness.slow

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.slow = False
            self.harness.run(most=4000)


Traffic.TestCase.settings = often(80, steps=40)
TestTraffic = pytest.mark.slow(Traffic.TestCase)
