"""Sampling: the distribution is right for all parameters, and one row's choice does not depend on another's."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch

from tests.gateway.engine.peft_oracle import request
from tests.narrowing import present
from tunery.gateway.engine.models.native.kernels import load_kernels
from tunery.gateway.engine.models.native.ops import sampling as native
from tunery.gateway.engine.sampling.sampler import Choice, Reduction, argmax_logsumexp, sample, score
from tunery.gateway.engine.scheduling.sequence import Sequence

KERNELS = load_kernels()
REDUCTIONS: list[Reduction] = (
    [argmax_logsumexp, partial(native.argmax_logsumexp, KERNELS)] if KERNELS else [argmax_logsumexp]
)
DRAWS = 4000


def sequence(prompt: tuple[int, ...] = (1, 2), *, output: tuple[int, ...] = (), **sampling: Any) -> Sequence:
    made = Sequence(request("r", prompt, **{"max_tokens": 10_000, **sampling}), eos_ids=frozenset({0}), now=0.0)
    made.tokens += output
    return made


def draw(logits: list[float], one: Sequence | None = None, **sampling: Any) -> Counter[int]:
    """How often each token is chosen in DRAWS draws of one request's noise."""
    one = one or sequence(**{"temperature": 1.0, "seed": 5, "logprobs": None, **sampling})
    return Counter(present(choice).token for choice in sample(torch.tensor([logits] * DRAWS), [one] * DRAWS))


def assert_fair(counts: Counter[int], probabilities: list[float]) -> None:
    """Pearson's chi-square test, failing one seed in a million; what is impossible never happened."""
    assert {token for token in counts if probabilities[token] == 0} == set()
    expected = {token: p * DRAWS for token, p in enumerate(probabilities) if p}
    assert min(expected.values()) >= 5  # else the test says nothing
    statistic = sum((counts[token] - mean) ** 2 / mean for token, mean in expected.items())
    freedom = len(expected) - 1
    # Wilson and Hilferty's approximation of the quantile 1 - 1e-6.
    assert statistic <= freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    return (torch.tensor(logits, dtype=torch.float64) / temperature).softmax(0).tolist()


def renormed(probabilities: list[float], kept: set[int]) -> list[float]:
    total = sum(probabilities[token] for token in kept)
    return [p / total if token in kept else 0.0 for token, p in enumerate(probabilities)]


SKEWED = [0.0, 2.0, 1.5, -1.0, 0.5, 2.5, 1.0, -2.0]  # by probability: 5, 1, 2, 6, 4, 0, 3, 7


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.9, 1.0, 1.7])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float, seed: int) -> None:
    assert_fair(draw(SKEWED, temperature=temperature, seed=seed), softmax(SKEWED, temperature))


def test_a_wide_vocabulary_is_covered_evenly() -> None:
    counts = draw([0.0] * 300)
    assert_fair(counts, [1 / 300] * 300)


@pytest.mark.parametrize(("top_k", "kept"), [(1, {5}), (3, {5, 1, 2}), (8, set(range(8))), (99, set(range(8)))])
def test_top_k_keeps_the_k_likeliest(top_k: int, kept: set[int]) -> None:
    counts = draw(SKEWED, top_k=top_k)
    assert set(counts) == kept if top_k < 8 else set(counts) <= kept
    if len(kept) > 1:
        assert_fair(counts, renormed(softmax(SKEWED), kept))


@pytest.mark.slow
def test_top_p_keeps_the_fewest_that_reach_the_mass() -> None:
    probabilities = softmax(SKEWED)
    order = sorted(range(8), key=lambda token: -probabilities[token])
    for count in range(2, 6):
        mass = sum(probabilities[token] for token in order[:count])
        assert_fair(draw(SKEWED, top_p=mass - 1e-4), renormed(probabilities, set(order[:count])))
    assert set(draw(SKEWED, top_p=1e-9)) == {5}


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest() -> None:
    probabilities = softmax(SKEWED)
    kept = {token for token, p in enumerate(probabilities) if p >= 0.2 * max(probabilities)}
    assert 1 < len(kept) < 8
    assert_fair(draw(SKEWED, min_p=0.2), renormed(probabilities, kept))
    assert set(draw(SKEWED, min_p=1.0)) == {5}


def test_cuts_are_made_after_the_temperature_and_one_after_another() -> None:
    hot = softmax(SKEWED, 2.0)
    kept = {5, 1, 2, 6}
    assert_fair(draw(SKEWED, temperature=2.0, top_k=4, top_p=0.999), renormed(hot, kept))
    narrowed = renormed(hot, kept)  # top_p is of what top_k left
    assert narrowed[5] + narrowed[1] > 0.6 > hot[5] + hot[1]
    assert set(draw(SKEWED, temperature=2.0, top_k=4, top_p=0.6)) == {5, 1}


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-39, 1e-300])
def test_hardly_any_temperature_is_greedy(temperature: float) -> None:
    assert set(draw([-300.0, 80.0, 79.0, -90.0], temperature=temperature)) == {1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "changed"),
    [
        ({"presence_penalty": 0.7}, [0.5, 1.0, -1.7, 0.3, 0.1, 0.0]),
        ({"frequency_penalty": 0.4}, [0.5, 1.0, -1.8, 0.3, 0.4, 0.0]),
        ({"repetition_penalty": 2.0}, [0.5, 0.5, -2.0, 0.3, 0.4, 0.0]),
        ({"logit_bias": {3: 1.5, 5: -100.0}}, [0.5, 1.0, -1.0, 1.8, 0.8, -math.inf]),
        (
            {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 2.0, "logit_bias": {2: 4.0}},
            [0.5, 0.5, 0.5, 0.3, -0.7, 0.0],
        ),
    ],
)
def test_penalties_and_biases_change_the_odds(sampling: dict[str, Any], changed: list[float]) -> None:
    logits = [0.5, 1.0, -1.0, 0.3, 0.8, 0.0]
    one = sequence((1, 2), output=(2, 2, 4), temperature=1.0, seed=3, logprobs=None, **sampling)
    assert_fair(draw(logits, one), softmax(changed))


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1e-30, 1e-40, 1e-300, 10.0])
def test_no_penalty_makes_a_logit_infinite(penalty: float) -> None:
    # Two tokens of the prompt would both be infinite, and their difference no number at all.
    logits = [0.5, 3.0, 2.0, 0.3]
    expected = {1, 2} if penalty < 1 else {0, 1, 2, 3}
    for heat in (0.0, 1.0):
        assert set(draw(logits, temperature=heat, repetition_penalty=penalty)) <= expected


def test_no_end_before_the_least_number_of_tokens() -> None:
    logits = torch.tensor([[9.0, 1.0, 0.0, 5.0]])
    for output, token in (((2,), 1), ((2, 2), 0)):
        settings: dict[str, Any] = {"output": output, "min_tokens": 2, "stop_token_ids": (3,), "ignore_eos": False}
        assert present(sample(logits, [sequence(temperature=0.0, **settings)])[0]).token == token
        hot = sequence(temperature=3.0, seed=1, **settings)
        assert set(draw(logits[0].tolist(), hot)) == ({1, 2} if token else {0, 1, 2, 3})


def test_log_probabilities_are_those_of_the_unmodified_model() -> None:
    logits = torch.tensor([SKEWED])
    one = sequence(temperature=2.0, seed=1, top_k=2, logit_bias={7: 100.0}, logprobs=3)
    choice = present(sample(logits.clone(), [one])[0])
    expected = logits[0].log_softmax(0)
    assert choice.token == 7
    assert choice.logprob == pytest.approx(float(expected[7]), abs=1e-6)
    assert [top.token for top in choice.top] == [5, 1, 2]
    assert [top.logprob for top in choice.top] == pytest.approx(expected[[5, 1, 2]].tolist(), abs=1e-6)


def test_the_logits_given_are_not_changed() -> None:
    logits = torch.tensor([SKEWED, SKEWED])
    sample(logits, [sequence(temperature=1.0, top_k=2, logit_bias={1: 5.0}), sequence()])
    assert torch.equal(logits, torch.tensor([SKEWED, SKEWED]))


def test_scores_are_log_probabilities_with_their_alternatives() -> None:
    logits = torch.tensor([SKEWED, SKEWED[::-1]])
    for reduce in REDUCTIONS:
        plain, rich = (present(one) for one in score(logits, [3, 0], [None, 2], reduce))
        assert plain.logprob == pytest.approx(float(logits[0].log_softmax(0)[3]), abs=1e-6)
        assert plain.top == ()
        assert rich.logprob == pytest.approx(float(logits[1].log_softmax(0)[0]), abs=1e-6)
        assert [top.token for top in rich.top] == [2, 6]


@pytest.mark.parametrize("reduce", REDUCTIONS, ids=["torch", "native"][: len(REDUCTIONS)])
def test_a_rows_choice_has_the_same_bits_in_any_company(reduce: Reduction) -> None:
    # As wide as a real vocabulary, and many rows: a sum over all rows at once differed in the last
    # bit in one row of forty.
    logits = torch.randn(48, 49152, generator=torch.Generator().manual_seed(0)) * 4 + 3
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"temperature": 0.8, "seed": 3, "top_p": 0.9},
        {"temperature": 1.3, "seed": 4, "top_k": 40, "min_p": 0.01},
    )

    def row(index: int) -> Sequence:
        return sequence(logprobs=2, **kinds[index % 3])

    together = sample(logits, [row(i) for i in range(48)], reduce)
    alone = [sample(logits[i : i + 1], [row(i)], reduce)[0] for i in range(48)]
    assert alone == together


def test_native_and_torch_reductions_agree() -> None:
    logits = torch.randn(9, 1003, generator=torch.Generator().manual_seed(1)) * 9
    for reduce in REDUCTIONS:
        best, log_z = reduce(logits)
        assert torch.equal(best, logits.argmax(1))
        torch.testing.assert_close(log_z, logits.logsumexp(1), rtol=1e-6, atol=1e-5)


def test_the_noise_is_the_requests_own() -> None:
    logits = torch.zeros(1, 1000)

    def text(seed: int | None) -> list[Choice]:
        one = sequence(temperature=1.0, seed=seed)
        return [present(sample(logits, [one])[0]) for _ in range(8)]

    assert text(1) == text(1) != text(2)
    assert text(None) != text(None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_generated(temperature: float) -> None:
    counts = draw(SKEWED, temperature=temperature, allowed_token_ids=(3, 6), logit_bias={5: 100.0})
    assert set(counts) == ({6} if temperature == 0 else {3, 6})


def test_the_last_token_of_a_bad_word_does_not_follow_the_others() -> None:
    words = ((5,), (1, 2))
    for output, banned in (((), {5}), ((1,), {5, 2}), ((1, 3), {5}), ((2, 1), {5, 2})):
        one = sequence(output=output, temperature=0.0, bad_words=words, min_tokens=0, logprobs=None)
        logits = torch.tensor([[0.0, 1.0, 3.0, 0.0, 2.0, 5.0, 1.0, 0.0]])
        assert present(sample(logits, [one])[0]).token == (4 if 2 in banned else 2)
        assert int(logits.argmax()) == 5  # what is reported stays the model's own


def test_where_every_token_is_forbidden_one_is_generated_all_the_same() -> None:
    words = tuple((token,) for token in range(8))
    (choice,) = sample(torch.tensor([SKEWED]), [sequence(temperature=0.0, bad_words=words)])
    assert 0 <= present(choice).token < 8
