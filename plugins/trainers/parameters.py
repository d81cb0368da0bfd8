"""The parameters of the built-in trainers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
from msgspec import Meta

from tunery.plugins.parameters import PositiveFloat, TrainingParameters
from tunery.registry.errors import InvalidInput
from tunery.registry.values import about

__all__ = ["DpoParameters", "FullParameters", "LoraParameters"]

PEFT_NAMES = {"r": "r", "alpha": "lora_alpha", "rslora": "use_rslora", "target_modules": "target_modules"}
"""Parameters that a parent version decides, and their names in PEFT's configuration."""

RATE = "the optimizer's step size at its highest"


class LoraParameters(TrainingParameters, frozen=True, kw_only=True):
    """LoRA on linear layers (arXiv 2106.09685): all of them unless `target_modules` names some.

    The learning rate is about ten times that of full fine-tuning, where LoRA learns as well as that does.
    """

    learning_rate: Annotated[PositiveFloat, about(RATE)] = 2e-4
    r: Annotated[int, Meta(ge=1, le=4096), about("LoRA rank")] = 16
    alpha: Annotated[float, Meta(gt=0, le=1_000_000), about("LoRA is scaled by alpha / r")] = 32.0
    dropout: Annotated[float, Meta(ge=0, lt=1), about("LoRA dropout while training")] = 0.0
    rslora: Annotated[bool, about("scale by alpha / √r instead (arXiv 2312.03732)")] = False
    target_modules: Annotated[
        tuple[str, ...] | Literal["all-linear"], about("linear layers that get a LoRA, such as q_proj,v_proj")
    ] = "all-linear"

    def continuing(self, parent: Mapping[str, Any], given: Collection[str]) -> Self:
        """With the parent's rank, scale and targets."""
        shape: dict[str, Any] = {}
        for name, field in PEFT_NAMES.items():
            if field not in parent:
                continue
            value, parent_value = getattr(self, name), parent[field]
            if name not in given:
                shape[name] = tuple(parent_value) if isinstance(parent_value, list) else parent_value
            elif _sorted(value) != _sorted(parent_value):
                raise InvalidInput(
                    f"the version to continue from has {name}={_sorted(parent_value)}, {name}={_sorted(value)} was asked for; "
                    f"leave {name} out, or start without --from",
                    code="invalid_parameter",
                    param=name,
                )
        try:
            return msgspec.convert(msgspec.to_builtins(self) | msgspec.to_builtins(shape), type(self))
        except msgspec.ValidationError:  # a shape that these parameters cannot express, such as targets by pattern
            return self


class FullParameters(TrainingParameters, frozen=True, kw_only=True):
    """Every weight. `fidelity` is the share of the held-out improvement that the served low-rank delta must keep."""

    learning_rate: Annotated[PositiveFloat, about(RATE)] = 2e-5
    fidelity: Annotated[
        float, Meta(gt=0, le=1), about("share of the held-out improvement that the served delta keeps")
    ] = 0.95


class DpoParameters(LoraParameters, frozen=True, kw_only=True):
    """LoRA trained on preference pairs (arXiv 2305.18290).

    `beta` is the strength of the penalty for moving away from the reference, the model that training starts from;
    `label_smoothing` is the assumed share of wrong labels; `loss` is "sigmoid" (DPO) or "ipo" (arXiv 2310.12036), which
    does not smooth labels. `sft_weight` adds that much of the chosen answer's loss per token (arXiv 2404.19733), for
    answers that are to be learned and not only preferred.
    """

    learning_rate_source: ClassVar[str] = (
        "a tenth of supervised LoRA's; Tinker cookbook (1e-5 for DPO, falls with width)"
    )

    learning_rate: Annotated[PositiveFloat, about(RATE)] = 2e-5
    beta: Annotated[
        float, Meta(gt=0, le=2), about("penalty for moving away from the reference; lower moves further")
    ] = 0.1
    label_smoothing: Annotated[
        float, Meta(ge=0, lt=0.5), about("assumed share of pairs with swapped answers; for sigmoid")
    ] = 0.0
    loss: Annotated[Literal["sigmoid", "ipo"], about("sigmoid is DPO (arXiv 2305.18290), ipo arXiv 2310.12036")] = (
        "sigmoid"
    )
    sft_weight: Annotated[
        float, Meta(ge=0, le=1000), about("weight of the chosen answer's loss per token, added to the preference loss")
    ] = 0.0

    def __post_init__(self) -> None:
        """Raise InvalidInput for options that would be ignored."""
        if self.loss == "ipo" and self.label_smoothing:
            raise InvalidInput(
                "loss=ipo does not smooth labels; leave label_smoothing out, or take loss=sigmoid",
                code="invalid_parameter",
            )


def _sorted(value: Any) -> Any:
    """Module names in one order, so that they compare and read alike."""
    return sorted(value) if isinstance(value, list | tuple | set) else value
