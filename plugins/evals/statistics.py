"""What results say: means with intervals, and of two models on the same rows the difference, paired by row.

An interval of a mean is a bootstrap over rows with a fixed seed, so it is the same every time; that of a share is
Wilson's. Whether one model passes more rows than another is McNemar's exact test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from tunery.plugins.evals.results import Answer, ItemResult, TokenUsage
from tunery.plugins.training.report.findings import bootstrap

__all__ = ["ALL", "Comparison", "GraderResult", "ModelResult", "RunSummary", "mcnemar", "summarize", "wilson"]

Z = 1.959963984540054
"""Standard normal deviations that 95 % lie within."""
ALL = "all graders"
"""The name of the comparison of rows that pass every grader."""


class GraderResult(msgspec.Struct, frozen=True, kw_only=True):
    """One grader's scores of one model: of `rows` rows the mean with its 95 % interval and how many passed.

    Rows that could not be scored are `errored` and count nowhere else.
    """

    name: str
    rows: int
    passed: int
    failed: int
    errored: int
    mean: float | None
    low: float | None
    high: float | None


class ModelResult(msgspec.Struct, frozen=True, kw_only=True):
    """One model: rows that pass every grader, the share of them with its 95 % interval, and each grader's result."""

    name: str
    reference: str
    passed: int
    failed: int
    errored: int
    pass_rate: float | None
    low: float | None
    high: float | None
    graders: list[GraderResult]
    usage: TokenUsage


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The first model less the second on the `rows` that both have a score for, with the 95 % interval.

    `both`, `only_first`, `only_second` and `neither` count the rows that pass; `p` is McNemar's exact test of them.
    """

    name: str
    rows: int
    difference: float | None
    low: float | None
    high: float | None
    both: int
    only_first: int
    only_second: int
    neither: int
    p: float


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run says: each model by itself, the first against the second, and the tokens of judges by model."""

    rows: int
    models: list[ModelResult]
    comparison: list[Comparison]
    judges: dict[str, TokenUsage]


def summarize(items: Sequence[ItemResult], *, models: Sequence[tuple[str, str]], graders: Sequence[str]) -> RunSummary:
    """Sum up results; `models` are their names and exact references."""
    answers = [[item.answers[at] for item in items] for at in range(len(models))]
    judges: dict[str, TokenUsage] = {}
    for answer in (each for of_model in answers for each in of_model):
        for name, usage in answer.judged.items():
            judges[name] = judges.get(name, TokenUsage()) + usage
    return RunSummary(
        rows=len(items),
        models=[_model(*named, of_model, graders) for named, of_model in zip(models, answers, strict=True)],
        comparison=_comparisons(answers[0], answers[1], graders) if len(models) > 1 else [],
        judges=judges,
    )


def wilson(part: int, whole: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927); `whole` is at least 1."""
    share, z2 = part / whole, Z * Z
    centre = (share + z2 / (2 * whole)) / (1 + z2 / whole)
    half = Z / (1 + z2 / whole) * math.sqrt(share * (1 - share) / whole + z2 / (4 * whole * whole))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided exact probability of a split at least this uneven, were both equally likely (McNemar 1947)."""
    count, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(count, at) for at in range(least + 1))
    # As integers: a power of two overflows a float before the quotient does.
    return min(1.0, 2 * tail / (1 << count))


def _model(name: str, reference: str, answers: Sequence[Answer], graders: Sequence[str]) -> ModelResult:
    states = [answer.state for answer in answers]
    passed, failed = states.count("pass"), states.count("fail")
    low, high = wilson(passed, passed + failed) if passed + failed else (None, None)
    return ModelResult(
        name=name,
        reference=reference,
        passed=passed,
        failed=failed,
        errored=states.count("error"),
        pass_rate=passed / (passed + failed) if passed + failed else None,
        low=low,
        high=high,
        graders=[_grader(grader, answers) for grader in graders],
        usage=sum((answer.usage for answer in answers), TokenUsage()),
    )


def _grader(name: str, answers: Sequence[Answer]) -> GraderResult:
    scores = [score for answer in answers if (score := answer.score(name)) is not None]
    passed = sum(score.passed for score in scores)
    mean, low, high = _mean([score.score or 0.0 for score in scores])
    return GraderResult(
        name=name,
        rows=len(scores),
        passed=passed,
        failed=len(scores) - passed,
        errored=len(answers) - len(scores),
        mean=mean,
        low=low,
        high=high,
    )


def _comparisons(first: Sequence[Answer], second: Sequence[Answer], graders: Sequence[str]) -> list[Comparison]:
    pairs = list(zip(first, second, strict=True))
    compared = [_compare_grader(name, pairs) for name in graders]
    decided = [(a.state == "pass", b.state == "pass") for a, b in pairs if "error" not in (a.state, b.state)]
    return [*compared, _compare(ALL, [(float(a), float(b)) for a, b in decided], decided)]


def _compare_grader(name: str, pairs: Sequence[tuple[Answer, Answer]]) -> Comparison:
    scored = [(a.score(name), b.score(name)) for a, b in pairs]
    both = [(a, b) for a, b in scored if a is not None and b is not None]
    return _compare(name, [(a.score or 0.0, b.score or 0.0) for a, b in both], [(a.passed, b.passed) for a, b in both])


def _compare(name: str, scores: Sequence[tuple[float, float]], passed: Sequence[tuple[bool, bool]]) -> Comparison:
    difference, low, high = _mean([a - b for a, b in scores])
    only_first, only_second = passed.count((True, False)), passed.count((False, True))
    return Comparison(
        name=name,
        rows=len(scores),
        difference=difference,
        low=low,
        high=high,
        both=passed.count((True, True)),
        only_first=only_first,
        only_second=only_second,
        neither=passed.count((False, False)),
        p=mcnemar(only_first, only_second),
    )


def _mean(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """The mean and its 95 % interval; None for no values."""
    if not values:
        return None, None, None
    numbers = np.array(values, dtype=float)
    low, high = bootstrap(numbers, np.ones(len(numbers)))
    return float(numbers.mean()), low, high
