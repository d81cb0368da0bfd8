"""How a job trains: the trainer, its parameters and the method, which a body can name in more than one place.

Places that say the same may both be there; those that disagree are refused, so that a job object never shows anything
else than what is trained.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from tunery.gateway.api.schemas.fine_tuning import Hyperparameters, JobCreate, TuneryOptions
from tunery.plugins.hookspecs import TrainerInfo
from tunery.plugins.manager import Plugins
from tunery.plugins.parameters import AUTO, TrainingParameters, given_names, read_parameters
from tunery.registry.errors import InvalidInput, UnknownName

__all__ = ["Training", "check_method", "plan_training"]

METHODS = {"supervised": "lora", "dpo": "dpo"}
"""The trainer of each of OpenAI's methods, where none is named."""
PARAMETERS = {"n_epochs": "epochs", "batch_size": "batch_size", "beta": "beta"}
"""OpenAI's hyperparameters that a trainer has under a name of its own."""


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer with its `parameters` (the seed is always among them), and the same in OpenAI's words."""

    trainer: TrainerInfo
    method: Literal["supervised", "dpo"]
    hyperparameters: Hyperparameters
    parameters: dict[str, Any]
    seed: int
    learning_rate_multiplier: float


def plan_training(body: JobCreate, plugins: Plugins) -> Training:
    """What a body asks for; raise InvalidInput, with the field as `param`, for what is unknown or contradicts itself."""
    check_method(body)
    extra = body.tunery or TuneryOptions()
    trainer = _trainer(body, extra, plugins)
    hyperparameters = _hyperparameters(body)
    parameters = _parameters(body, hyperparameters, extra.parameters or {}, trainer)
    multiplier = hyperparameters.learning_rate_multiplier
    return Training(
        trainer=trainer,
        method=trainer.openai_method,
        hyperparameters=hyperparameters,
        parameters=parameters,
        seed=read_parameters(trainer.parameters, parameters).seed,
        learning_rate_multiplier=float(multiplier) if isinstance(multiplier, int | float) else 1.0,
    )


def check_method(body: JobCreate) -> None:
    """Raise InvalidInput for an unknown method, and for options of another method than the one that is named."""
    if body.method is None:
        return
    kind = body.method.type
    if kind not in METHODS:
        raise InvalidInput(
            f"the method {kind[:40]!r} is not supported; known: {', '.join(METHODS)}",
            code="unsupported_method",
            param="method.type",
        )
    for other in METHODS:
        if other != kind and getattr(body.method, other) is not None:
            raise InvalidInput(
                f"method.{other} has no effect, as method.type is {kind!r}; leave it out, or set method.type to {other!r}",
                code="unsupported_parameter",
                param=f"method.{other}",
            )


def _trainer(body: JobCreate, extra: TuneryOptions, plugins: Plugins) -> TrainerInfo:
    name = extra.trainer or METHODS[body.method.type if body.method else "supervised"]
    if name not in plugins.trainers():
        raise UnknownName("trainer", name, plugins.trainers(), param="tunery.trainer")
    trainer = plugins.trainer(name)
    if body.method is not None and body.method.type != trainer.openai_method:
        raise InvalidInput(
            f"the trainer {name!r} is one of the method {trainer.openai_method!r}, and method.type is "
            f"{body.method.type!r}; leave one of them out",
            code="invalid_parameter",
            param="tunery.trainer",
        )
    return trainer


def _hyperparameters(body: JobCreate) -> Hyperparameters:
    """Those of the method and those in the older place, together."""
    older, newer = body.hyperparameters or Hyperparameters(), Hyperparameters()
    if body.method is not None:
        options = getattr(body.method, body.method.type)
        newer = (options and options.hyperparameters) or newer
    values: dict[str, Any] = {}
    for name in Hyperparameters.__struct_fields__:
        old, new = getattr(older, name), getattr(newer, name)
        if _decided(old) and _decided(new) and old != new:
            raise InvalidInput(
                f"hyperparameters.{name} is {old}, and that of the method is {new}; give it once",
                code="invalid_parameter",
                param=f"hyperparameters.{name}",
            )
        values[name] = new if _decided(new) or old is None else old
    return Hyperparameters(**values)


def _parameters(
    body: JobCreate, hyperparameters: Hyperparameters, own: Mapping[str, Any], trainer: TrainerInfo
) -> dict[str, Any]:
    """The trainer's parameters, from OpenAI's words and its own."""
    words = {f"hyperparameters.{word}": (name, getattr(hyperparameters, word)) for word, name in PARAMETERS.items()}
    words["seed"] = "seed", body.seed
    read, decided, given = _read(trainer, own, "tunery.parameters"), given_names(own), dict(own)
    for word, (name, value) in words.items():
        if not _decided(value):
            continue
        if name in decided and getattr(read, name) != value:
            raise _conflict(word, value, name, own[name])
        given[name] = value
    multiplier = hyperparameters.learning_rate_multiplier
    if _decided(multiplier) and multiplier != 1 and "learning_rate" in decided:
        raise _conflict("hyperparameters.learning_rate_multiplier", multiplier, "learning_rate", own["learning_rate"])
    if "seed" not in given_names(given):
        given["seed"] = secrets.randbelow(2**31)
    _read(trainer, given, "hyperparameters")
    return given


def _read(trainer: TrainerInfo, values: Mapping[str, Any], param: str) -> TrainingParameters:
    try:
        return read_parameters(trainer.parameters, values)
    except InvalidInput as error:
        raise InvalidInput(error.message, code=error.code, param=param) from error


def _conflict(word: str, value: object, name: str, own: object) -> InvalidInput:
    return InvalidInput(
        f"{word} is {value}, and tunery.parameters.{name} is {str(own)[:40]}; give one of them",
        code="invalid_parameter",
        param="tunery.parameters",
    )


def _decided(value: object) -> bool:
    """Whether a value was chosen by the client, and is not left to Tunery."""
    return value not in (None, AUTO)
