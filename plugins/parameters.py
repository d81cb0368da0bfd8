"""Owns the parameters every trainer understands, and reading `--set name=value` into them; refuses unknown names.

A trainer's own parameters are a subclass of TrainingParameters, so one flat namespace serves the command line, the HTTP API
and the manifest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta

from tunery.registry.errors import InvalidInput, UnknownName
from tunery.registry.values import read_value

__all__ = ["AUTO", "TrainingParameters", "given_names", "read_parameters", "step_count"]

AUTO = "auto"
"""What a parameter may be given as to have it chosen from data, base and method, as when it is not given at all."""

PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


class TrainingParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the training loop itself needs, whatever is trained.

    `batch_size` is rows per optimizer step; `micro_batch_size` how many go through the model at once (gradients accumulate).
    `max_steps` 0 means `epochs` decides. `warmup` is the share of steps that warm up. `eval_fraction` of the rows is held out
    when no validation file is given. `max_length` is in tokens. `eval_every` and `checkpoint_every` count steps, 0 is never;
    `patience` evaluations in a row without a better one end the run, 0 is never. `memory_gb` is what the run may hold, 0 is
    what the machine has free. `report_rows` is how many training rows the report looks at, 0 as many as cost a tenth of the run.

    The defaults are fallbacks: what is not given, or given as "auto", is chosen by `tunery.plugins.training.defaults` where it
    has a rule; `learning_rate` is then the rate for a base of 2,048 hidden units.
    """

    learning_rate_source: ClassVar[str] = (
        "LoRA Without Regret (ten times full tuning's, fifteen in short runs); Tinker cookbook (falls with width)"
    )

    learning_rate: PositiveFloat = 2e-5
    epochs: PositiveFloat = 3.0
    max_steps: NonNegativeInt = 0
    batch_size: PositiveInt = 8
    micro_batch_size: PositiveInt = 8
    max_length: PositiveInt = 1024
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Fraction = 0.05
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    max_grad_norm: PositiveFloat = 1.0
    eval_fraction: Annotated[float, Meta(ge=0, le=0.5)] = 0.1
    eval_every: NonNegativeInt = 0
    checkpoint_every: NonNegativeInt = 0
    patience: NonNegativeInt = 0
    memory_gb: Annotated[float, Meta(ge=0)] = 0.0
    report_rows: NonNegativeInt = 0
    seed: NonNegativeInt = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


P = TypeVar("P", bound=TrainingParameters)


def read_parameters(kind: type[P], values: Mapping[str, Any]) -> P:
    """Build `kind` from names and (possibly textual) values; raise InvalidInput naming every problem at once."""
    known = {field.name for field in msgspec.structs.fields(kind)}
    problems = [str(UnknownName("parameter", name, known)) for name in values if name not in known]
    good: dict[str, Any] = {}
    given = given_names(values)
    for field in msgspec.structs.fields(kind):
        if field.name in given:
            try:
                good[field.name] = read_value(field.name, values[field.name], field.type)
            except InvalidInput as error:
                problems.append(error.message)
    if problems:
        raise InvalidInput("\n".join(problems), code="invalid_parameter")
    return kind(**good)


def given_names(values: Mapping[str, Any]) -> set[str]:
    """Names that somebody decided; what is "auto" is left to the rules."""
    return {name for name, value in values.items() if value != AUTO or name == "precision"}


def step_count(parameters: TrainingParameters, rows: int) -> int:
    """Optimizer steps of a run over `rows` examples."""
    if parameters.max_steps:
        return parameters.max_steps
    return max(1, math.ceil(parameters.epochs * math.ceil(rows / parameters.batch_size)))
