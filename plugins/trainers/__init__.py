"""The built-in trainers: full, lora and qlora, described without importing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from msgspec import Meta

from tunery.plugins.hookspecs import TrainerInfo, hookimpl
from tunery.plugins.parameters import PositiveFloat, PositiveInt, TrainingParameters

__all__ = ["FullParameters", "LoraParameters", "register_trainers"]


class LoraParameters(TrainingParameters, frozen=True, kw_only=True):
    """A low-rank pair on linear layers (arXiv 2106.09685): all of them unless `target_modules` names some.

    The learning rate is about ten times that of full fine-tuning, which is where low-rank pairs learn as well.
    """

    learning_rate: PositiveFloat = 2e-4
    r: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    rslora: bool = False
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class FullParameters(TrainingParameters, frozen=True, kw_only=True):
    """Every weight. `fidelity` is the share of the held-out improvement that the served low-rank delta must keep."""

    learning_rate: PositiveFloat = 2e-5
    fidelity: Annotated[float, Meta(gt=0, le=1)] = 0.95


@hookimpl
def register_trainers(register: Callable[[TrainerInfo], None]) -> None:
    """The three."""
    register(
        TrainerInfo(
            name="full",
            summary="every weight; served as a low-rank delta, exact weights kept",
            entrypoint="tunery.plugins.trainers.full:FullTrainer",
            parameters=FullParameters,
        )
    )
    register(
        TrainerInfo(
            name="lora",
            summary="low-rank pairs on all linear layers",
            entrypoint="tunery.plugins.trainers.lora:LoraTrainer",
            parameters=LoraParameters,
        )
    )
    register(
        TrainerInfo(
            name="qlora",
            summary="low-rank pairs on the NF4 base that serving uses",
            entrypoint="tunery.plugins.trainers.qlora:QloraTrainer",
            parameters=LoraParameters,
        )
    )
