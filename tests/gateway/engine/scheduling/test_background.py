"""The background: it runs on what interactive requests leave, changes nothing for them, and all of it gets done."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.engine.hypothesis_settings import often
from tests.gateway.engine.scheduling.scheduler_harness import SchedulerHarness, composition
from tests.gateway.engine.scheduling.test_preemption import running, victims
from tunery.gateway.engine.scheduling.fairness import VirtualTokenCounter
from tunery.gateway.engine.scheduling.preemption import victim_for_growth, victims_for_adapters
from tunery.gateway.engine.scheduling.sequence import Sequence


class Arrival(NamedTuple):
    """A request that comes at a step."""

    step: int
    prompt: int
    tokens: int
    tenant: str


ARRIVALS = st.lists(
    st.builds(Arrival, st.integers(0, 30), st.integers(1, 60), st.integers(1, 20), st.sampled_from("ab")), max_size=8
)


def words(length: int, seed: int) -> list[int]:
    """A prompt that shares nothing with one of another seed."""
    return [(seed * 7919 + 31 * at + at * at) % 1000 for at in range(length)]


def behind(sequence: Sequence) -> Sequence:
    sequence.background = True
    return sequence


def play(interactive: list[Arrival], background: list[Arrival], **limits: int) -> SchedulerHarness:
    """Let all requests come and end."""
    harness = SchedulerHarness(background_slots=2, prefix_caching=False, **limits)  # type: ignore[arg-type]
    for step in range(31):
        for at, arrival in enumerate(interactive):
            if arrival.step == step:
                prompt = words(arrival.prompt, at)
                harness.submit(f"i{at}", prompt, arrival.tokens, tenant=arrival.tenant)
        for at, arrival in enumerate(background):
            if arrival.step == step:
                prompt = words(arrival.prompt, 100 + at)
                harness.submit(f"b{at}", prompt, arrival.tokens, tenant=arrival.tenant, background=True)
        harness.step()
    harness.run()
    return harness


@often(60)
@given(ARRIVALS, ARRIVALS, st.integers(2, 5), st.integers(6, 20), st.integers(8, 40))
def test_interactive_requests_are_served_step_by_step_as_without_a_background(
    interactive: list[Arrival], background: list[Arrival], max_batch: int, pages: int, budget: int
) -> None:
    limits = {"max_batch": max_batch, "pages": pages, "token_budget": budget}
    alone, beside = play(interactive, [], **limits), play(interactive, background, **limits)
    names = [f"i{at}" for at in range(len(interactive))]
    for found, expected in ((beside.first, alone.first), (beside.finished, alone.finished)):
        assert {name: found[name] for name in names} == {name: expected[name] for name in names}
    assert len(beside.finished) == len(interactive) + len(background)


def test_the_background_starts_only_when_nobody_waits_and_gives_way_at_once() -> None:
    harness = SchedulerHarness(max_batch=2, background_slots=2)
    for number in range(3):
        harness.submit(f"b{number}", words(5, number), 20, background=True)
    harness.step()
    assert harness.started == ["b0", "b1"]
    for number in range(3):
        harness.submit(f"i{number}", words(5, 10 + number), 4)
    harness.step()
    assert harness.started[2:] == ["i0", "i1"]
    assert not any(one.background for one in harness.scheduler.running)
    harness.run()
    assert max(harness.finished[f"i{number}"] for number in range(3)) < min(
        harness.finished[f"b{number}"] for number in range(3)
    )


def test_it_never_takes_more_than_its_places() -> None:
    harness = SchedulerHarness(max_batch=8, background_slots=3)
    for number in range(12):
        harness.submit(str(number), words(40, number), 5, background=True)
    harness.step()
    assert len(harness.scheduler.running) == 3
    harness.run()


def test_a_tenants_background_does_not_count_against_its_other_requests() -> None:
    """Served alone for long, in the background, a tenant still comes before one that is ahead of it otherwise."""
    harness = SchedulerHarness(max_batch=1, background_slots=1)
    harness.submit("background", words(50, 0), 40, tenant="a", background=True)
    harness.submit("other", words(10, 1), 10, tenant="b")
    for _ in range(80):
        harness.step()
    harness.submit("busy", words(10, 2), 10, tenant="b")
    harness.step()
    harness.submit("b-next", words(5, 3), 2, tenant="b")
    harness.submit("a-next", words(5, 4), 2, tenant="a")
    harness.run()
    assert harness.first["a-next"] < harness.first["b-next"]


def test_its_adapters_make_room_for_those_of_others_in_a_few_steps() -> None:
    harness = SchedulerHarness(adapters=1)
    harness.submit("background", words(5, 0), 500, parts=composition(1), background=True)
    for _ in range(5):
        harness.step()
    assert harness.started == ["background"]
    harness.submit("interactive", words(5, 1), 3, parts=composition(2))
    for _ in range(8):
        harness.step()
    assert "interactive" in harness.finished
    harness.run()


def test_one_whose_adapter_waits_behind_the_backgrounds_own_gets_its_turn() -> None:
    harness = SchedulerHarness(adapters=1, seconds=0.1)
    for number in range(30):
        harness.submit(f"many{number}", words(5, number), 30, parts=composition(1), background=True)
    harness.submit("single", words(5, 99), 3, tenant="b", parts=composition(2), background=True)
    harness.run(5000)


def test_nobody_waits_for_a_prefix_that_the_background_computes() -> None:
    prompt = words(64, 0)
    harness = SchedulerHarness(token_budget=16, background_slots=2)
    harness.submit("other", words(4, 1), 60)
    harness.submit("background", prompt, 4, background=True)
    for _ in range(3):
        harness.step()
    assert "background" in harness.started
    harness.submit("interactive", prompt, 4)
    harness.step()
    assert "interactive" in harness.started
    harness.run()


def test_the_background_is_the_first_victim_for_every_reason() -> None:
    batch = [running("a", 1), behind(running("a", 2)), running("a", 3), behind(running("b", 4))]
    assert victims("c", batch) == [batch[3]]
    assert victims("a", batch) == [batch[3]]
    fairness = VirtualTokenCounter()
    fairness.charge("a", output=9)
    assert victim_for_growth(batch, fairness) is batch[3]
    assert victims_for_adapters(batch, 0.0) == [batch[1], batch[3]]
