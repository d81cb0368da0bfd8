"""Choose the training parameters that were not given, each by a rule with a reason and a source.

A given value is never changed. A rule sees only the data, the base and the method, so the same
inputs give the same choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import msgspec

from tunery.plugins.parameters import Choice, TrainingParameters, step_count

__all__ = ["RULES", "Facts", "choose"]

P = TypeVar("P", bound=TrainingParameters)

REFERENCE_WIDTH = 2048
"""Hidden size of the base that a trainer's default learning rate is for."""

FULL_RATE = TrainingParameters().learning_rate
SHORT_RUN = 100
"""Steps below which LoRA takes a higher learning rate."""

LARGEST_BATCH, SMALLEST_BATCH = 16, 4
EVALUATIONS, CHECKPOINTS = 5, 10
ENOUGH_HELD_OUT = 8
"""Held-out rows below which a higher loss is taken for noise."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules depend on: numbers of training and held-out rows, and the base's hidden size."""

    rows: int
    held_out: int
    hidden: int


def choose(parameters: P, given: Collection[str], facts: Facts, *, multiplier: float = 1.0) -> tuple[P, list[Choice]]:
    """Replace every parameter that has a rule and is not in `given`; return the parameters and the
    choices, in order.

    A chosen learning rate is multiplied by `multiplier`.
    """
    choices: list[Choice] = []
    for name, rule in RULES.items():
        if name not in given:
            choice = rule(parameters, facts)
            if name == "learning_rate" and multiplier != 1.0:
                reason = f"{choice.reason}; times {multiplier:g}, as asked"
                choice = msgspec.structs.replace(choice, value=choice.value * multiplier, reason=reason)
            choices.append(choice)
            values: dict[str, Any] = {name: choice.value}
            parameters = msgspec.structs.replace(parameters, **values)
    return parameters, choices


def _epochs(parameters: TrainingParameters, facts: Facts) -> Choice:
    target = 3
    if facts.rows * target < 100:
        value, why = min(25, max(1, 100 // max(facts.rows, 1))), "more, until 100 rows are seen"
    elif facts.rows * target > 25_000:
        value, why = max(1, 25_000 // facts.rows), "fewer, about 25,000 rows seen"
    else:
        value, why = target, "the usual three"
    return Choice(
        name="epochs", value=float(value), reason=f"{facts.rows} rows: {why}", source="OpenAI cookbook's estimate"
    )


def _batch_size(parameters: TrainingParameters, facts: Facts) -> Choice:
    value = LARGEST_BATCH
    while value > SMALLEST_BATCH and parameters.epochs * facts.rows / value < SHORT_RUN:
        value //= 2
    return Choice(
        name="batch_size",
        value=value,
        reason=f"the largest up to {LARGEST_BATCH} that leaves {SHORT_RUN} steps, {SMALLEST_BATCH} at least",
        source="LoRA Without Regret (large batches cost low-rank pairs more)",
    )


def _micro_batch_size(parameters: TrainingParameters, facts: Facts) -> Choice:
    return Choice(
        name="micro_batch_size",
        value=parameters.batch_size,
        reason="the whole batch at once; halved where the longest rows do not fit in memory",
        source="preflight",
    )


def _learning_rate(parameters: TrainingParameters, facts: Facts) -> Choice:
    own = type(parameters)().learning_rate
    value = own * math.sqrt(REFERENCE_WIDTH / facts.hidden)
    reason = f"{own:g} at {REFERENCE_WIDTH} hidden units, by the square root of the width for {facts.hidden}"
    steps = step_count(parameters, facts.rows)
    if own > FULL_RATE and steps < SHORT_RUN:
        value *= 1.5
        reason += f"; half as much again for {steps} steps"
    return Choice(
        name="learning_rate",
        value=float(f"{value:.2g}"),
        reason=reason,
        source=parameters.learning_rate_source,
    )


def _warmup(parameters: TrainingParameters, facts: Facts) -> Choice:
    steps = step_count(parameters, facts.rows)
    value = 0.1 if steps < SHORT_RUN else 0.05
    return Choice(name="warmup", value=value, reason=f"a share of {steps} steps", source="common practice")


def _eval_every(parameters: TrainingParameters, facts: Facts) -> Choice:
    steps = step_count(parameters, facts.rows)
    value = max(1, math.ceil(steps / EVALUATIONS)) if facts.held_out else 0
    why = f"{EVALUATIONS} looks at the held-out rows in {steps} steps" if facts.held_out else "nothing is held out"
    return Choice(name="eval_every", value=value, reason=why, source="Tunery")


def _checkpoint_every(parameters: TrainingParameters, facts: Facts) -> Choice:
    steps = step_count(parameters, facts.rows)
    value = max(1, math.ceil(steps / CHECKPOINTS))
    return Choice(
        name="checkpoint_every",
        value=value,
        reason=f"at most a tenth of {steps} steps is lost to a crash",
        source="Tunery",
    )


def _patience(parameters: TrainingParameters, facts: Facts) -> Choice:
    value = 3 if facts.held_out >= ENOUGH_HELD_OUT else 0
    why = "evaluations without a better one" if value else f"{facts.held_out} held-out rows are too few to stop by"
    return Choice(name="patience", value=value, reason=why, source="common practice")


RULES: dict[str, Callable[[TrainingParameters, Facts], Choice]] = {
    "epochs": _epochs,
    "batch_size": _batch_size,
    "micro_batch_size": _micro_batch_size,
    "learning_rate": _learning_rate,
    "warmup": _warmup,
    "eval_every": _eval_every,
    "checkpoint_every": _checkpoint_every,
    "patience": _patience,
}
"""The parameters with a rule, in order: a rule may depend on what earlier ones chose."""
