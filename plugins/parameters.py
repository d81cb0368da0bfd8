"""The parameters that every trainer understands, and how `--set name=value` is read into them.

A trainer's own parameters are a subclass of TrainingParameters, so the command line, the HTTP API and the manifest
share one flat namespace.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import msgspec
from msgspec import Meta

from tunery.registry.errors import InvalidInput, UnknownName
from tunery.registry.values import FieldDescription, about, describe_fields, read_value

__all__ = [
    "AUTO",
    "CHOSEN",
    "Choice",
    "TrainingParameters",
    "describe_parameters",
    "given_names",
    "read_parameters",
    "step_count",
]

_SHOWN = 20
"""Problems that a message shows."""
AUTO = "auto"
"""The value that leaves a parameter to be chosen for the run, as if it had not been given."""

CHOSEN = frozenset(
    (
        "batch_size",
        "checkpoint_every",
        "epochs",
        "eval_every",
        "learning_rate",
        "micro_batch_size",
        "patience",
        "warmup",
    )
)
"""Parameters that are chosen from data, base and method where they are not given: each has a rule in
`training.defaults`."""

Rows = Annotated[int, Meta(ge=1, le=65_536)]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


class TrainingParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the training loop itself needs, whatever is trained.

    The defaults are fallbacks. A parameter in CHOSEN that is not given, or given as "auto", is chosen by
    `tunery.plugins.training.defaults`; the default of `learning_rate` is the rate for a base of 2,048 hidden units.
    """

    learning_rate_source: ClassVar[str] = (
        "LoRA Without Regret (ten times full tuning's, fifteen in short runs); Tinker cookbook (falls with width)"
    )

    learning_rate: Annotated[PositiveFloat, about("peak learning rate of the optimizer")] = 2e-5
    epochs: Annotated[float, Meta(gt=0, le=10_000), about("passes over the training rows")] = 3.0
    max_steps: Annotated[Count, about("optimizer steps; 0: as many as the epochs take")] = 0
    batch_size: Annotated[Rows, about("rows per optimizer step")] = 8
    micro_batch_size: Annotated[Rows, about("rows per forward pass; gradients accumulate to batch_size")] = 8
    max_length: Annotated[int, Meta(ge=1, le=1_048_576), about("tokens per row; longer rows are cut")] = 1024
    schedule: Annotated[
        Literal["cosine", "linear", "constant"], about("how the learning rate falls after the warmup")
    ] = "cosine"
    warmup: Annotated[Fraction, about("share of the steps over which the learning rate rises")] = 0.05
    weight_decay: Annotated[float, Meta(ge=0, le=1000), about("weight decay of AdamW")] = 0.0
    max_grad_norm: Annotated[PositiveFloat, about("gradients are clipped to this norm")] = 1.0
    eval_fraction: Annotated[
        float, Meta(ge=0, le=0.5), about("share of the rows to hold out where no --val is given")
    ] = 0.1
    eval_every: Annotated[Count, about("steps between evaluations; 0: only at the end")] = 0
    checkpoint_every: Annotated[Count, about("steps between checkpoints; 0: none")] = 0
    patience: Annotated[Count, about("evaluations without improvement after which the run ends; 0: never")] = 0
    memory_gb: Annotated[
        float, Meta(ge=0, le=1_000_000), about("memory that the run may use, in GB; 0: what is free")
    ] = 0.0
    report_rows: Annotated[
        Count, about("training rows that the report evaluates; 0: as many as take a tenth of the run's time")
    ] = 0
    seed: Annotated[
        int,
        Meta(ge=0, le=2**63 - 1),
        about("random seed of row order, adapter initialization, dropout, rounding and the held-out split"),
    ] = 0
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        about("dtype of training steps; auto: bfloat16 where the hardware supports it"),
    ] = "auto"

    def continuing(self, parent: Mapping[str, Any], given: Collection[str]) -> Self:
        """These parameters for a run that continues a version; `parent` is its adapter configuration.

        A subclass takes over what the parent decides, and raises InvalidInput when another value of that was `given`.
        """
        return self


P = TypeVar("P", bound=TrainingParameters)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter that was not given, the value chosen for it, the reason, and the source of the rule."""

    name: str
    value: float | int
    reason: str
    source: str


def read_parameters(kind: type[P], values: Mapping[str, Any]) -> P:
    """Build `kind` from names and (possibly textual) values. Raises InvalidInput that names all problems at
    once, the first 20 of them."""
    names = {field.name for field in msgspec.structs.fields(kind)}
    problems = [str(UnknownName("parameter", name, names)) for name in values if name not in names]
    parsed: dict[str, Any] = {}
    given = given_names(values)
    for field in msgspec.structs.fields(kind):
        if field.name in given:
            try:
                parsed[field.name] = read_value(field.name, values[field.name], field.type)
            except InvalidInput as error:
                problems.append(error.message)
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise InvalidInput("\n".join([*problems[:_SHOWN], *more]), code="invalid_parameter")
    return kind(**parsed)


def given_names(values: Mapping[str, Any]) -> set[str]:
    """Names whose values were decided by the caller; those given as "auto" are left to the rules."""
    return {name for name, value in values.items() if value != AUTO or name == "precision"}


def describe_parameters(kind: type[TrainingParameters]) -> list[FieldDescription]:
    """Describe every parameter of a trainer; the default of one that is chosen for the run is `auto`."""
    return [
        msgspec.structs.replace(field, default=AUTO) if field.name in CHOSEN else field
        for field in describe_fields(kind)
    ]


def step_count(parameters: TrainingParameters, rows: int) -> int:
    """Optimizer steps of a run over `rows` examples."""
    if parameters.max_steps:
        return parameters.max_steps
    return max(1, math.ceil(parameters.epochs * math.ceil(rows / parameters.batch_size)))
