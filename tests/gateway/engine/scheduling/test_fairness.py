"""Fairness: the tenant that was charged least comes first, by weight, without saving up; long
waiting wins in the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.engine.hypothesis_settings import often
from tunery.gateway.engine.scheduling.fairness import AGING_RATE, VirtualTokenCounter


def test_output_costs_twice_as_much_as_prompt() -> None:
    fairness = VirtualTokenCounter()
    fairness.charge("a", prompt=10)
    fairness.charge("b", output=5)
    assert fairness.counter("a") == fairness.counter("b") == 10


def test_a_weight_makes_everything_cheaper() -> None:
    fairness = VirtualTokenCounter({"a": 4.0})
    fairness.charge("a", prompt=10, output=15)
    fairness.charge("b", prompt=4, output=3)
    assert fairness.counter("a") == fairness.counter("b") == 10
    assert (fairness.weight("a"), fairness.weight("b")) == (4.0, 1.0)
    assert fairness.priority("a", 0.0, uncharged=40) == fairness.priority("b", 0.0, uncharged=10) == 20


def test_whoever_has_paid_least_comes_first() -> None:
    fairness = VirtualTokenCounter()
    fairness.charge("a", prompt=10)
    assert fairness.priority("b", 0.0) < fairness.priority("a", 0.0)
    assert fairness.priority("a", 0.0) < fairness.priority("b", 0.0, uncharged=11)  # what it runs already counts


def test_waiting_brings_forward() -> None:
    fairness = VirtualTokenCounter()
    fairness.charge("a", prompt=int(3 * AGING_RATE))
    assert fairness.priority("a", 2.9) > fairness.priority("b", 0.0)
    assert fairness.priority("a", 3.1) < fairness.priority("b", 0.0)


def test_a_newcomer_starts_at_the_level_of_those_who_are_there() -> None:
    fairness = VirtualTokenCounter()
    for tenant, tokens in (("a", 500), ("b", 300), ("gone", 100)):
        fairness.charge(tenant, prompt=tokens)
    fairness.arrive("new", ["a", "b"])
    assert fairness.counter("new") == 300
    fairness.charge("new", prompt=900)
    fairness.arrive("new", ["a", "b"])  # coming back does not wipe out what it has paid
    assert fairness.counter("new") == 1200


def test_counters_start_anew_when_nobody_is_left() -> None:
    fairness = VirtualTokenCounter()
    fairness.charge("a", prompt=500)
    fairness.leave(["b"])
    assert fairness.counter("a") == 500
    fairness.leave([])
    assert fairness.counter("a") == 0


@often(100)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=2, max_size=5),
    sizes=st.lists(st.integers(1, 40), min_size=50, max_size=50),
)
def test_serving_whose_turn_it_is_gives_each_its_share(weights: list[float], sizes: list[int]) -> None:
    fairness = VirtualTokenCounter({str(index): weight for index, weight in enumerate(weights)})
    tenants = [str(index) for index in range(len(weights))]
    served = dict.fromkeys(tenants, 0)
    for size in sizes * 4:
        tenant = min(tenants, key=lambda t: fairness.priority(t, 0.0))
        served[tenant] += size
        fairness.charge(tenant, prompt=size)
    levels = [served[tenant] / fairness.weight(tenant) for tenant in tenants]
    # The bound of virtual token counters: nobody is ahead by more than one piece of work.
    assert max(levels) - min(levels) <= max(sizes) / min(weights)
    assert [fairness.counter(tenant) for tenant in tenants] == pytest.approx(levels)
