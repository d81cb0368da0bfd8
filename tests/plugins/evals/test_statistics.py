"""Summaries against results known exactly."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.plugins.evals.graders import Score
from tunery.plugins.evals.results import Answer, AnswerError, ItemResult, TokenUsage
from tunery.plugins.evals.statistics import ALL, mcnemar, summarize, wilson

MODELS = [("a", "acme/a@1"), ("base", "base")]


def answer(score: float | None, *, passed: bool = False) -> Answer:
    error = "the judge's answer is not JSON" if score is None else None
    scores = [Score(name="g", type="score_model", score=score, passed=passed, error=error)]
    judged = {"judge": TokenUsage(1, 5, 2, 0)}
    return Answer(
        model="m", text="x", finish_reason="stop", usage=TokenUsage(1, 10, 3, 4), scores=scores, judged=judged
    )


def item(first: Answer, second: Answer) -> ItemResult:
    return ItemResult(line=1, item={}, input=[], answers=[first, second])


def test_a_difference_is_paired_by_row() -> None:
    """Rows differ a lot and the models by 0.25 in each: paired, there is no doubt about the difference."""
    items = [item(answer(n / 8 + 0.25, passed=True), answer(n / 8)) for n in range(6)]
    summary = summarize(items, models=MODELS, graders=["g"])
    (first, second), (one, every) = summary.models, summary.comparison
    assert first.graders[0].mean == pytest.approx(0.5625)
    assert second.graders[0].mean == pytest.approx(0.3125)
    assert first.graders[0].low is not None
    assert first.graders[0].low < 0.5625 < (first.graders[0].high or 0)
    assert (one.difference, one.low, one.high) == (0.25, 0.25, 0.25)
    assert (one.both, one.only_first, one.only_second, one.neither) == (0, 6, 0, 0)
    assert one.p == 2 / 2**6
    assert (every.name, every.difference, every.rows) == (ALL, 1.0, 6)
    assert first.usage == TokenUsage(6, 60, 18, 24)
    assert summary.judges == {"judge": TokenUsage(12, 60, 24, 0)}
    assert summarize(items, models=MODELS, graders=["g"]) == summary


def test_rows_without_a_score_count_nowhere_but_as_errors() -> None:
    failed = Answer(
        model="m", text=None, finish_reason=None, usage=TokenUsage(1), error=AnswerError("context_length_exceeded", "x")
    )
    items = [
        item(answer(1.0, passed=True), answer(0.0)),
        item(answer(None), answer(1.0, passed=True)),
        item(failed, answer(1.0, passed=True)),
    ]
    summary = summarize(items, models=MODELS, graders=["g"])
    (first, second), (one, every) = summary.models, summary.comparison
    assert (first.passed, first.failed, first.errored, first.pass_rate) == (1, 0, 2, 1.0)
    assert (first.graders[0].rows, first.graders[0].errored) == (1, 2)
    assert (second.passed, second.failed, second.errored) == (2, 1, 0)
    assert (one.rows, every.rows, one.only_first, one.p) == (1, 1, 1, 1.0)


def test_nothing_but_errors_has_no_mean() -> None:
    summary = summarize([item(answer(None), answer(None))], models=MODELS, graders=["g"])
    assert (summary.models[0].pass_rate, summary.models[0].graders[0].mean) == (None, None)
    assert (summary.comparison[0].difference, summary.comparison[0].p) == (None, 1.0)


@given(st.integers(0, 300), st.integers(0, 3000))
def test_mcnemar_is_the_binomial_test(one: int, other: int) -> None:
    count, least = one + other, min(one, other)
    exact = Fraction(2 * sum(comb(count, at) for at in range(least + 1)), 2**count)
    assert mcnemar(one, other) == pytest.approx(float(min(exact, Fraction(1))), rel=1e-12)
    assert mcnemar(one, other) == mcnemar(other, one)


def test_known_values() -> None:
    """McNemar's for 1 against 9; Wilson's for 8 of 10 and 0 of 5."""
    assert mcnemar(1, 9) == 22 / 1024
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 5) == pytest.approx((0.0, 0.434482), abs=1e-6)
