"""What losses before and after say: intervals, outcomes, forgetting, planted wrong answers and memorised rows."""

from __future__ import annotations

import random

import pytest

from tunery.plugins.training.report.findings import (
    KEPT,
    TIE,
    Change,
    RowLoss,
    compare,
    forgetting,
    hardest,
    memorised,
    outcome,
    suspicious,
)


def row(line: int, before: float, after: float, *, split: str = "train", tokens: int = 10) -> RowLoss:
    return RowLoss("rows.jsonl", line, split, tokens, before, after)  # type: ignore[arg-type]


def learnt(count: int, *, split: str = "train", to: float = 0.4) -> list[RowLoss]:
    """Rows between 2 and 4 nats that training brought to about `to`."""
    noise = random.Random(split)
    return [row(n, 2 + 2 * noise.random(), to * (0.8 + 0.4 * noise.random()), split=split) for n in range(1, count + 1)]


def test_means_are_by_tokens_and_the_interval_holds_the_change() -> None:
    change = compare([row(1, 4.0, 1.0, tokens=30), row(2, 2.0, 2.0, tokens=10)])
    assert change is not None
    assert (change.rows, change.tokens) == (2, 40)
    assert (change.before, change.after) == (3.5, 1.25)
    # Drawn twice, one row gives the bounds.
    assert (change.low, change.high) == (-3.0, 0.0)
    assert compare([]) is None


def test_more_rows_give_a_narrower_interval_and_the_same_rows_the_same() -> None:
    noise = random.Random(0)
    rows = [row(n, 2.0, 2.0 + noise.gauss(0, 1)) for n in range(400)]
    few, many = compare(rows[:40]), compare(rows)
    assert few is not None
    assert many is not None
    assert many == compare(rows)
    assert many.low <= many.after - many.before <= many.high
    # The standard error of the mean of 400 draws with deviation 1 is 0.05: 95 % is about 0.2 wide.
    assert 0.15 < many.high - many.low < 0.25 < few.high - few.low


@pytest.mark.parametrize(
    ("after", "expected"), [(2 - 2 * TIE, "win"), (2 + 2 * TIE, "loss"), (2.0, "tie"), (2 - TIE / 2, "tie")]
)
def test_a_row_is_won_or_lost_by_more_than_a_little(after: float, expected: str) -> None:
    assert outcome(row(1, 2.0, after)) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.5, -0.1, "kept"), (-0.1, KEPT, "kept"), (0.05, 0.3, "unclear"), (KEPT + 0.01, 0.3, "forgot")],
)
def test_forgetting_is_only_reported_when_it_is_certain(low: float, high: float, expected: str) -> None:
    assert forgetting(Change(40, 400, 2.0, 2.0 + (low + high) / 2, low, high)) == expected


def test_a_wrong_answer_among_many_is_the_most_suspicious_row() -> None:
    rows = [*learnt(200), row(500, 3.0, 2.9)]
    assert [note.line for note in suspicious(rows)] == [500]
    assert suspicious(rows)[0].like == pytest.approx(0.4, abs=0.1)


def test_a_row_that_was_as_hard_before_and_is_as_hard_as_its_like_is_not_suspicious() -> None:
    hard = [row(300 + n, 8 + n / 100, 3 + n % 7 / 10) for n in range(60)]
    assert suspicious([*learnt(200), *hard]) == []


def test_a_kind_of_rows_that_stays_hard_is_not_suspicious_and_repeats_count_once() -> None:
    easy, free = learnt(150, to=0.05), [row(300 + n, 2 + n / 40, 1.5 + n % 9 / 10) for n in range(80)]
    assert suspicious([*easy, *free]) == []
    known = [row(500 + n, 3.0, 0.01) for n in range(60)]
    assert suspicious([*free, *known]) == []


def test_a_row_that_became_worse_is_suspicious_even_among_rows_that_vary() -> None:
    rows = [row(n, 2.0 + n / 1000, (n % 20) / 10) for n in range(100)]
    assert suspicious(rows) == []
    assert [note.line for note in suspicious([*rows, row(500, 2.0, 2.3)])] == [500]


def test_few_rows_are_not_judged() -> None:
    assert suspicious([*learnt(10), row(500, 3.0, 9.0)]) == []
    assert memorised([row(1, 3.0, 0.0)], learnt(5, split="held_out", to=2.0)) == []


def test_rows_known_far_better_than_any_held_out_one_are_learnt_by_heart() -> None:
    held_out = learnt(50, split="held_out", to=2.0)
    rows = [*learnt(100, to=1.9), row(500, 3.0, 0.05), row(501, 3.1, 0.01)]
    assert [note.line for note in memorised(rows, held_out)] == [501, 500]


def test_a_rule_that_held_out_rows_follow_too_is_not_learnt_by_heart() -> None:
    assert memorised(learnt(100, to=0.01), learnt(50, split="held_out", to=0.02)) == []


def test_the_hardest_come_first() -> None:
    assert [note.line for note in hardest([row(1, 1.0, 0.5), row(2, 1.0, 2.0), row(3, 9.0, 1.0)], 2)] == [2, 3]
