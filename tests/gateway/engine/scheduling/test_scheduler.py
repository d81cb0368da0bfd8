"""Who runs when: nobody is lost or runs twice, budgets hold, tenants get their shares, and what is taken out comes back the same."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.gateway.engine.hypothesis_settings import often
from tests.gateway.engine.scheduling.scheduler_harness import Hall, composition
from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE


def words(length: int, *, seed: int = 0) -> list[int]:
    """A prompt that shares nothing with one of another seed."""
    return [(seed * 7919 + 31 * at + at * at) % 1000 for at in range(length)]


def test_a_batch_and_a_budget_are_never_exceeded_and_all_is_said() -> None:
    hall = Hall(max_batch=3, token_budget=20, pages=30)
    for number in range(10):
        hall.submit(str(number), words(5 + 6 * number, seed=number), 4 + number, parts=composition(number % 3))
    hall.run()


def test_within_a_tenant_the_first_comes_first() -> None:
    hall = Hall(max_batch=2)
    names = [str(number) for number in range(9)]
    for name in names:
        hall.submit(name, words(10, seed=int(name)), 3)
    hall.run()
    assert hall.started == names
    assert sorted(names, key=lambda name: hall.first[name]) == names


def test_a_request_whose_adapter_is_on_its_way_lets_others_pass() -> None:
    hall = Hall(max_batch=4, slow=True)
    cold = hall.submit("cold", words(5), 3, parts=composition(1))
    hall.submit("base", words(5, seed=1), 3)
    hall.step()
    assert hall.started == ["base"]
    assert cold.missed
    hall.slow = False
    hall.run()


def test_a_long_prompt_is_cut_and_does_not_hold_up_those_who_decode() -> None:
    hall = Hall(token_budget=16)
    hall.submit("decoding", words(4), 30)
    hall.step()
    hall.submit("long", words(150, seed=1), 2)
    before = len(hall.said["decoding"])
    for _ in range(8):
        hall.step()
    assert len(hall.said["decoding"]) == before + 8
    assert hall.said["long"] == []
    hall.run()


def test_the_second_request_with_a_prompt_computes_only_its_end() -> None:
    hall = Hall()
    hall.submit("first", words(4 * PAGE_SIZE + 3), 2)
    hall.run()
    second = hall.submit("second", words(4 * PAGE_SIZE + 3), 2)
    other = hall.submit("other", words(4 * PAGE_SIZE + 3), 2, parts=composition(1))
    again = hall.submit("whole pages", words(4 * PAGE_SIZE), 2)
    hall.run()
    assert (second.cached, other.cached, again.cached) == (4 * PAGE_SIZE, 0, 3 * PAGE_SIZE)
    assert hall.scheduler.prefix_hits == 7 * PAGE_SIZE


def test_equal_prompts_at_once_are_computed_once() -> None:
    hall = Hall(token_budget=40)
    made = [hall.submit(str(number), words(5 * PAGE_SIZE + 1), 3) for number in range(6)]
    hall.run()
    assert sorted(one.cached for one in made) == [0] + [5 * PAGE_SIZE] * 5
    assert (
        hall.served[""] == 5 * PAGE_SIZE + 1 + 5 + 6 * 2
    )  # the prompt once, its last token by all, and two tokens each


def test_a_twin_goes_on_when_the_first_is_cancelled() -> None:
    hall = Hall(token_budget=20)
    hall.submit("first", words(5 * PAGE_SIZE), 3)
    hall.step()
    hall.submit("twin", words(5 * PAGE_SIZE), 3)
    hall.step()
    hall.cancel("first")
    hall.run()


def test_where_pages_run_out_the_youngest_is_taken_out_and_says_the_same() -> None:
    hall = Hall(pages=9, max_batch=4)
    for number in range(4):
        hall.submit(str(number), words(2 * PAGE_SIZE, seed=number), 40)
    hall.run()
    assert hall.scheduler.preemptions > 0
    assert hall.started == ["0", "1", "2", "3"]


def test_a_shared_beginning_that_only_a_victim_holds_is_not_counted_as_room() -> None:
    # The flooder holds every page; the newcomer shares the flooder's prompt and needs more pages than its eviction frees.
    hall = Hall(pages=6, max_batch=8)
    hall.submit("flood-0", words(2 * PAGE_SIZE), 30, tenant="flood")
    hall.submit("flood-1", words(3 * PAGE_SIZE, seed=1), 30, tenant="flood")
    hall.step()
    hall.step()
    prompt = words(3 * PAGE_SIZE, seed=1)[: 2 * PAGE_SIZE] + words(3 * PAGE_SIZE, seed=2)
    hall.submit("new", prompt, 3, tenant="new")
    hall.run()


def test_a_request_larger_than_the_room_left_by_a_stream_of_small_ones_gets_its_turn() -> None:
    hall = Hall(pages=10, max_batch=10)
    names = (str(number) for number in itertools.count())
    for tenant in "abc":
        hall.submit(next(names), words(2 * PAGE_SIZE, seed=ord(tenant)), 20, tenant=tenant)
    hall.step()
    hall.submit("large", words(9 * PAGE_SIZE, seed=99), 2, tenant="large")
    for step in range(600):
        if "large" in hall.first:
            break
        if step % 5 == 0:
            tenant = "abc"[step // 5 % 3]
            hall.submit(next(names), words(2 * PAGE_SIZE, seed=step), 20, tenant=tenant)
        hall.step()
    assert "large" in hall.first
    hall.run()


# -- tenants ----------------------------------------------------------------------------------------------------------


@often(60)
@given(
    prompt=st.integers(1, 250),
    count=st.integers(1, 60),
    requests=st.integers(8, 80),
    before=st.integers(0, 60),
    mine=st.integers(1, 50) | st.integers(51, 300),
    seconds=st.sampled_from([0.001, 0.05, 0.4]),
    reuse=st.booleans(),
)
def test_a_flood_delays_another_tenants_first_token_by_two_steps_at_most(
    prompt: int, count: int, requests: int, before: int, mine: int, seconds: float, reuse: bool
) -> None:
    hall = Hall(max_batch=8, token_budget=64, pages=200, seconds=seconds, reuse=reuse)
    for number in range(requests):
        hall.submit(f"flood-{number}", words(prompt, seed=number), count, tenant="flood")
    for _ in range(before):
        hall.step()
    hall.submit("mine", words(mine, seed=-1), 5, tenant="me")
    arrived, own = hall.steps, math.ceil(mine / (64 - 7))  # up to seven others decode
    while "mine" not in hall.first:
        hall.step()
        # A prompt that is longer than a step has at least every other one.
        assert hall.steps <= arrived + 2 * own + 1
    hall.run()


@pytest.mark.parametrize("prompt", [4, 120])
@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}, {"a": 2.0, "b": 1.0, "c": 1.0}])
def test_weights_give_proportional_service(weights: dict[str, float], prompt: int) -> None:
    hall = Hall(max_batch=12, token_budget=64, pages=300, weights=weights, reuse=False)
    for number in range(600):
        for tenant in weights:
            hall.submit(f"{tenant}-{number}", words(prompt, seed=3 * number + ord(tenant)), 16, tenant=tenant)
    for _ in range(700):
        hall.step()
    assert set(weights) == {one.tenant for one in hall.scheduler.running}
    for tenant in weights:
        share = hall.served[tenant] / sum(hall.served.values())
        assert share == pytest.approx(weights[tenant] / sum(weights.values()), rel=0.15)


def test_a_tenant_that_was_away_has_saved_nothing_up() -> None:
    hall = Hall(max_batch=4, reuse=False)
    for number in range(60):
        hall.submit(f"a-{number}", words(20, seed=number), 20, tenant="a")
    for _ in range(150):
        hall.step()
    before = hall.served["a"]
    for number in range(60):
        hall.submit(f"b-{number}", words(20, seed=1000 + number), 20, tenant="b")
    for _ in range(100):
        hall.step()
    share = hall.served["b"] / (hall.served["b"] + hall.served["a"] - before)
    assert 0.4 <= share <= 0.6


# -- adapters ---------------------------------------------------------------------------------------------------------


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
    hall = Hall(adapters=room, max_batch=6, seconds=seconds, sizes={f"d{n}": size for n, size in enumerate(sizes)})
    if pinned is not None and sizes[pinned] <= room:
        hall.submit("pin", words(3), 1, parts=composition(pinned))
        hall.run()
        hall.residency.pin(f"d{pinned}")
    else:
        pinned = None
    impossible = set()
    for number, parts in enumerate(compositions):
        hall.submit(
            str(number),
            words(3 + number, seed=number),
            count,
            tenant=str(number % tenants),
            parts=composition(*parts, weight=0.5),
        )
        needed = {*parts} if pinned is None else {*parts, pinned}
        if parts and sum(sizes[n] for n in needed) > room:
            impossible.add(str(number))
    hall.run(most=200 + len(compositions) * (count + 20 + int(1.5 / seconds)))
    assert hall.failed == dict.fromkeys(impossible, "adapter_too_large")


def test_a_composition_that_cannot_be_made_fails_alone() -> None:
    hall = Hall()
    hall.submit("fine", words(5), 3, parts=composition(1))
    hall.submit("composed", words(5, seed=1), 3, parts=composition(1, 2))
    hall.run()
    hall.residency.hold(composition(2)[0].source).plain = False  # type: ignore[union-attr]
    hall.residency.release("d2")
    for name, parts in (
        ("refused", composition(1, 2)),
        ("weighted", composition(2, weight=0.5)),
        ("alone", composition(2)),
        ("other", composition(1, 3)),
    ):
        hall.submit(name, words(5, seed=2), 3, parts=parts)
    hall.run()
    assert hall.failed == dict.fromkeys(("refused", "weighted"), "unsupported_composition")


def test_a_stream_for_one_adapter_does_not_keep_another_out() -> None:
    hall = Hall(adapters=1, max_batch=4, seconds=0.05)
    names = (str(number) for number in itertools.count())
    for _ in range(4):
        hall.submit(next(names), words(5), 20, tenant="a", parts=composition(1))
    hall.step()
    hall.submit("other", words(5), 5, tenant="a", parts=composition(2))
    for _ in range(200):
        if "other" in hall.first:
            break
        if hall.scheduler.waiting < 4:
            hall.submit(next(names), words(5), 20, tenant="a", parts=composition(1))
        hall.step()
    assert "other" in hall.first
    hall.run()


def test_a_hit_is_counted_once_a_request_and_only_when_nothing_was_waited_for() -> None:
    hall = Hall(max_batch=1)
    hall.submit("cold", words(5), 3, parts=composition(1))
    hall.run()
    assert (hall.residency.loads["acme/a1"], hall.residency.hits["acme/a1"]) == (1, 0)
    for number in range(5):
        hall.submit(str(number), words(5, seed=number), 10, parts=composition(1))
    hall.run()
    assert hall.residency.hits["acme/a1"] == 5


# -- whatever happens -------------------------------------------------------------------------------------------------


class Traffic(RuleBasedStateMachine):
    """Requests of any kind come and go, adapters are unloaded under way, time passes; the hall itself checks every step."""

    @initialize(
        pages=st.integers(5, 20),
        reuse=st.booleans(),
        batch=st.integers(1, 6),
        budget=st.integers(6, 40),
        adapters=st.integers(2, 4),
        weight=st.sampled_from([1.0, 2.5]),
        seconds=st.sampled_from([0.01, 0.6]),
    )
    def begin(
        self, pages: int, reuse: bool, batch: int, budget: int, adapters: int, weight: float, seconds: float
    ) -> None:
        self.hall = Hall(
            pages, reuse, batch, budget, adapters=adapters, weights={"a": weight}, seconds=seconds, slow=False
        )
        self.names = (str(number) for number in itertools.count())

    @rule(
        length=st.integers(1, 60),
        seed=st.integers(0, 2),
        count=st.integers(1, 40),
        tenant=st.sampled_from("abc"),
        parts=st.lists(st.integers(0, 3), max_size=2),
    )
    def submit(self, length: int, seed: int, count: int, tenant: str, parts: list[int]) -> None:
        most = self.hall.pages * PAGE_SIZE
        length = min(length, most - 1)
        count = min(count, most - length)
        self.hall.submit(next(self.names), words(length, seed=seed), count, tenant=tenant, parts=composition(*parts))

    @rule(count=st.integers(1, 10))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.hall.step()

    @precondition(lambda self: self.hall.expected)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.hall.cancel(data.draw(st.sampled_from(sorted(self.hall.expected))))

    @rule(number=st.integers(0, 3))
    def unload(self, number: int) -> None:
        self.hall.residency.unload(f"d{number}")

    @rule()
    def slow_disk(self) -> None:
        self.hall.slow = not self.hall.slow

    def teardown(self) -> None:
        if hasattr(self, "hall"):
            self.hall.slow = False
            self.hall.run(most=4000)


Traffic.TestCase.settings = often(80, steps=40)
TestTraffic = Traffic.TestCase
