"""LoRA on a mixture of experts: only the linear layers outside the experts are adapted, because
only those are served."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from torch import nn

from tunery.registry.errors import InvalidInput

__all__ = ["has_experts", "layers_outside_experts", "leave_out_experts"]

ALL_LINEAR = "all-linear"
LINEAR = frozenset({"Linear", "Linear4bit", "Linear8bitLt"})
"""Classes of linear layers; their subclasses, such as routers, are not adapted."""
EXPERT_NAMES = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Names that PEFT takes for experts' weights, whatever else has them."""


def has_experts(model: nn.Module) -> bool:
    """Whether the model is a mixture of experts, with the experts' weights in one tensor or in modules of their own."""
    return any(parameter.dim() == 3 or ".experts." in name for name, parameter in model.named_parameters())


def layers_outside_experts(model: nn.Module) -> list[str]:
    """Last names of the linear layers outside the experts, such as attention's."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    linear = {
        name
        for name, module in model.named_modules()
        if type(module).__name__ in LINEAR and module is not head and ".experts." not in name
    }
    return sorted({name.rpartition(".")[2] for name in linear} - EXPERT_NAMES)


def leave_out_experts(config: LoraConfig, base: nn.Module) -> None:
    """Replace the target "all-linear" by the layers outside the experts; raise InvalidInput for any other target."""
    outside = layers_outside_experts(base)
    if config.target_modules == ALL_LINEAR:
        config.target_modules = outside
        return
    targets = config.target_modules or []
    names = [targets] if isinstance(targets, str) else targets
    wrong = sorted(name for name in names if name.rpartition(".")[2] not in outside)
    if wrong or config.target_parameters:
        raise InvalidInput(
            f"target_modules names {', '.join(wrong)}: adapters of a mixture of experts are served on {', '.join(outside)} and on no "
            "other layer; name some of those, or leave target_modules out",
            code="invalid_parameter",
        )
