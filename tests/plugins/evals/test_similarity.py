"""Metrics of similarity: their bounds, equal texts, and values computed by hand from the papers' definitions."""

from __future__ import annotations

import math
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.plugins.evals.similarity import MAX_TEXT, METRICS, common_subsequence, similarity
from tunery.registry.errors import InvalidInput

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "Mat", "a", ".", "!"]), max_size=12).map(" ".join)
SYMMETRIC = [name for name in METRICS if name not in ("bleu",)]


@pytest.mark.parametrize("metric", METRICS)
@given(text=WORDS | st.text(), reference=WORDS | st.text())
def test_every_metric_is_from_zero_to_one_and_one_for_equal_texts(metric: str, text: str, reference: str) -> None:
    assert 0.0 <= similarity(metric, text, reference) <= 1.0
    assert similarity(metric, text, text) == 1.0


@pytest.mark.parametrize("metric", SYMMETRIC)
@given(text=WORDS | st.text(), reference=WORDS | st.text())
def test_all_but_bleu_are_symmetric(metric: str, text: str, reference: str) -> None:
    assert similarity(metric, text, reference) == similarity(metric, reference, text)


@given(st.text(alphabet="abc", max_size=12), st.text(alphabet="abc", max_size=12))
def test_the_longest_common_subsequence_is_that_of_the_recurrence(one: str, other: str) -> None:
    @cache
    def longest(i: int, j: int) -> int:
        if not i or not j:
            return 0
        if one[i - 1] == other[j - 1]:
            return longest(i - 1, j - 1) + 1
        return max(longest(i - 1, j), longest(i, j - 1))

    assert common_subsequence(one, other) == longest(len(one), len(other))


@pytest.mark.parametrize(
    ("metric", "text", "reference", "expected"),
    [
        ("fuzzy_match", "this is a test", "this is a test!", 28 / 29),
        ("fuzzy_match", "abc", "xyz", 0.0),
        ("rouge_1", "the cat sat", "The cat, the mat", 4 / 7),
        ("rouge_2", "the cat sat", "the cat ran", 0.5),
        ("rouge_l", "police kill the gunman", "police killed the gunman", 0.75),
        ("rouge_l", "the gunman police kill", "police kill the gunman", 0.5),
        ("rouge_5", "one two three", "one two three four", 0.0),
        ("gleu", "the cat", "the dog", 1 / 3),
        ("bleu", "the the the", "the cat", (1 / 3 * 1 / 3 * 1 / 2 * 1) ** 0.25),
        ("bleu", "the cat", "the cat sat on", math.exp(1 - 4 / 2)),
        ("bleu", "dog", "cat", 0.0),
    ],
)
def test_values_by_hand(metric: str, text: str, reference: str, expected: float) -> None:
    assert similarity(metric, text, reference) == pytest.approx(expected)


def test_a_text_too_long_to_compare_is_refused() -> None:
    with pytest.raises(InvalidInput, match="too long"):
        similarity("fuzzy_match", "a" * (MAX_TEXT + 1), "b")
