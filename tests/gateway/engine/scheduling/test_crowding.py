"""A tenant that fills the batch sits out the pass of another's short prompt, and no two passes in a row."""

from __future__ import annotations

import pytest

from tests.gateway.engine.scheduling.scheduler_harness import SchedulerHarness

FLOOD = 12


def flooded(**settings: object) -> SchedulerHarness:
    """A batch in which tenant `flood` decodes, with room for a few more."""
    harness = SchedulerHarness(max_batch=16, min_crowd=8, pages=200, **settings)  # type: ignore[arg-type]
    for number in range(FLOOD):
        harness.submit(f"flood-{number}", [number, 1, 2], 40, tenant="flood")
    harness.step()
    return harness


def passes(harness: SchedulerHarness, count: int) -> list[dict[str, int]]:
    """The tokens computed by tenant in each of the next passes."""
    made = []
    for _ in range(count):
        before = dict(harness.served)
        harness.step()
        made.append({name: n - before.get(name, 0) for name, n in harness.served.items() if n != before.get(name, 0)})
    return made


def test_a_short_prompt_is_computed_without_the_crowd() -> None:
    harness = flooded()
    harness.submit("quiet", [7, 8, 9], 3, tenant="quiet")
    assert passes(harness, 3) == [{"quiet": 3}, {"flood": FLOOD, "quiet": 1}, {"flood": FLOOD, "quiet": 1}]
    harness.run()


def test_a_crowd_never_sits_out_two_passes_in_a_row() -> None:
    harness = flooded()
    for number in range(20):
        harness.submit(f"quiet-{number}", [7, 8, number], 1, tenant=f"quiet-{number}")
        (made,) = passes(harness, 1)
        assert ("flood" in made) == (number % 2 == 1)
        assert number % 2 == 0 or made["flood"] == FLOOD
    harness.run()


def test_a_prompt_much_longer_than_the_crowd_runs_beside_it() -> None:
    harness = flooded(token_budget=400)
    harness.submit("long", list(range(4 * FLOOD + 1)), 1, tenant="quiet")
    assert passes(harness, 1) == [{"flood": FLOOD, "quiet": 4 * FLOOD + 1}]
    harness.run()


def test_prompts_of_the_crowd_itself_wait_for_nobody_and_hold_nobody_up() -> None:
    harness = flooded()
    harness.submit("more", [7, 8, 9], 1, tenant="flood")
    assert passes(harness, 1) == [{"flood": FLOOD + 3}]
    harness.run()


def test_a_tenant_whose_weight_is_its_crowd_does_not_sit_out() -> None:
    harness = flooded(weights={"flood": 2.0 * FLOOD})
    harness.submit("quiet", [7, 8, 9], 1, tenant="quiet")
    assert passes(harness, 1) == [{"flood": FLOOD, "quiet": 3}]
    harness.run()


def test_the_background_sits_out_with_the_crowd() -> None:
    harness = flooded(background_slots=2)
    harness.submit("batch", [4, 5, 6], 9, tenant="other", background=True)
    harness.step()
    harness.submit("quiet", [7, 8, 9], 1, tenant="quiet")
    assert passes(harness, 2) == [{"quiet": 3}, {"flood": FLOOD, "other": 1}]
    harness.run()


def test_a_place_is_kept_for_whoever_sends_one_request_after_the_other() -> None:
    harness = SchedulerHarness(max_batch=FLOOD, min_crowd=8, pages=200)
    for number in range(2 * FLOOD):
        harness.submit(f"flood-{number}", [number, 1, 2], 60, tenant="flood")
    harness.step()
    for number in range(5):
        harness.submit(f"quiet-{number}", [7, 8, number], 2, tenant="quiet")
        harness.step()
        assert len(harness.scheduler.running) == FLOOD
        harness.step()
        # It has ended, and the next one comes while the flood's next pass runs.
        assert harness.finished[f"quiet-{number}"] == harness.steps
        harness.step()
        assert len(harness.scheduler.running) == FLOOD - 1
    assert harness.scheduler.stats.preemptions == 1
    harness.step()
    assert len(harness.scheduler.running) == FLOOD, "the place is kept for one round only"
    harness.run()


@pytest.mark.parametrize(("flood", "sits_out"), [(7, False), (8, True)])
def test_a_few_are_no_crowd(flood: int, sits_out: bool) -> None:
    harness = SchedulerHarness(max_batch=16, min_crowd=8, pages=200)
    for number in range(flood):
        harness.submit(f"flood-{number}", [number, 1, 2], 9, tenant="flood")
    harness.step()
    harness.submit("quiet", [7, 8, 9], 1, tenant="quiet")
    assert passes(harness, 1) == [{"quiet": 3} if sits_out else {"flood": flood, "quiet": 3}]
    harness.run()
