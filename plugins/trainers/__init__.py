"""The built-in trainers: full, lora, qlora and dpo, described without importing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from tunery.plugins.hookspecs import TrainerInfo, hookimpl
from tunery.plugins.parameters import PositiveFloat, PositiveInt, TrainingParameters
from tunery.registry.errors import InvalidInput
from tunery.registry.values import about

__all__ = ["EXACT", "DpoParameters", "FullParameters", "LoraParameters", "register_trainers"]

RATE = "the optimizer's step size at its highest"

EXACT = "model"
"""The folder of exact weights, inside a version: only a full fine-tune has one."""


class LoraParameters(TrainingParameters, frozen=True, kw_only=True):
    """A low-rank pair on linear layers (arXiv 2106.09685): all of them unless `target_modules` names some.

    The learning rate is about ten times that of full fine-tuning, which is where low-rank pairs learn as well.
    """

    learning_rate: Annotated[PositiveFloat, about(RATE)] = 2e-4
    r: Annotated[PositiveInt, about("rank of the pairs")] = 16
    alpha: Annotated[PositiveFloat, about("pairs count alpha / r times")] = 32.0
    dropout: Annotated[float, Meta(ge=0, lt=1), about("share of a pair's inputs that is dropped while training")] = 0.0
    rslora: Annotated[bool, about("pairs count alpha / √r times instead (arXiv 2312.03732)")] = False
    target_modules: Annotated[
        tuple[str, ...] | Literal["all-linear"], about("linear layers that get a pair, such as q_proj,v_proj")
    ] = "all-linear"


class FullParameters(TrainingParameters, frozen=True, kw_only=True):
    """Every weight. `fidelity` is the share of the held-out improvement that the served low-rank delta must keep."""

    learning_rate: Annotated[PositiveFloat, about(RATE)] = 2e-5
    fidelity: Annotated[
        float, Meta(gt=0, le=1), about("share of the held-out improvement that the served delta keeps")
    ] = 0.95


class DpoParameters(LoraParameters, frozen=True, kw_only=True):
    """A low-rank pair taught by pairs of answers (arXiv 2305.18290).

    `beta` is how dear it is to leave the model that training starts from; `label_smoothing` the share of pairs that may be the
    wrong way round; `loss` "sigmoid" (DPO) or "ipo" (arXiv 2310.12036), which does not smooth. `sft_weight` adds that much of the
    better answer's loss a token (arXiv 2404.19733): answers that are to be learned too, not only preferred.
    """

    learning_rate_source: ClassVar[str] = (
        "a tenth of supervised pairs'; Tinker cookbook (1e-5 for DPO, falls with width)"
    )

    learning_rate: Annotated[PositiveFloat, about(RATE)] = 2e-5
    beta: Annotated[float, Meta(gt=0, le=2), about("how dear it is to leave the reference; lower moves further")] = 0.1
    label_smoothing: Annotated[
        float, Meta(ge=0, lt=0.5), about("share of pairs that may be the wrong way round; for sigmoid")
    ] = 0.0
    loss: Annotated[Literal["sigmoid", "ipo"], about("sigmoid is DPO (arXiv 2305.18290), ipo arXiv 2310.12036")] = (
        "sigmoid"
    )
    sft_weight: Annotated[float, Meta(ge=0), about("adds that much of the better answer's loss a token")] = 0.0

    def __post_init__(self) -> None:
        """Refuse what would be ignored."""
        if self.loss == "ipo" and self.label_smoothing:
            raise InvalidInput(
                "loss=ipo does not smooth labels; leave label_smoothing out, or take loss=sigmoid",
                code="invalid_parameter",
            )


@hookimpl
def register_trainers(register: Callable[[TrainerInfo], None]) -> None:
    """The four."""
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
    register(
        TrainerInfo(
            name="dpo",
            summary="low-rank pairs taught by pairs of a better and a worse answer",
            entrypoint="tunery.plugins.trainers.dpo:DpoTrainer",
            parameters=DpoParameters,
            methods=("preference",),
        )
    )
