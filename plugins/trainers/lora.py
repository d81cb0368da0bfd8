"""The LoRA trainer (arXiv 2106.09685): the base is frozen, low-rank matrices on its linear layers are trained in float32."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunery.plugins.quantization import Quant
from tunery.plugins.trainers import EXACT
from tunery.plugins.trainers.parameters import PEFT_NAMES, LoraParameters
from tunery.plugins.training.trainer import LoadContext, SaveContext, load_base
from tunery.registry.errors import InvalidInput
from tunery.registry.peft.config import AdapterConfig

__all__ = ["LoraTrainer"]


ALL_LINEAR = "all-linear"
_LINEAR = frozenset({"Linear", "Linear4bit", "Linear8bitLt"})
"""Classes of linear layers; their subclasses, such as routers, are not adapted."""
_PROJECTIONS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Names that PEFT takes for experts' weights, whatever else has them."""


def mixes_experts(model: nn.Module) -> bool:
    """Whether the model is a mixture of experts, with its experts' weights in one tensor or in modules of their own."""
    return any(parameter.dim() == 3 or ".experts." in name for name, parameter in model.named_parameters())


def linear_beside_experts(model: nn.Module) -> list[str]:
    """Last names of the linear layers outside the experts, such as attention's."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    linear = {
        name
        for name, module in model.named_modules()
        if type(module).__name__ in _LINEAR and module is not head and ".experts." not in name
    }
    return sorted({name.rpartition(".")[2] for name in linear} - _PROJECTIONS)


def _leave_out_experts(asked: LoraConfig, base: nn.Module) -> None:
    """Replace "all-linear" by the layers outside the experts; refuse experts, which PEFT would adapt but no engine here serves."""
    beside = linear_beside_experts(base)
    if asked.target_modules == ALL_LINEAR:
        asked.target_modules = beside
        return
    names = [asked.target_modules] if isinstance(asked.target_modules, str) else asked.target_modules or []
    wrong = sorted(name for name in names if name.rpartition(".")[2] not in beside)
    if wrong or asked.target_parameters:
        raise InvalidInput(
            f"target_modules names {', '.join(wrong)}: adapters of a mixture of experts are served on {', '.join(beside)} and on no "
            "other layer; name some of those, or leave target_modules out",
            code="invalid_parameter",
        )


class LoraTrainer:
    """Subclass it and override `config` for any other PEFT variant of LoRA."""

    quant: Quant = "none"

    def config(self, parameters: LoraParameters) -> LoraConfig:
        """PEFT's configuration for these parameters."""
        targets: Any = parameters.target_modules
        alpha: Any = parameters.alpha
        return LoraConfig(
            r=parameters.r,
            lora_alpha=alpha,
            lora_dropout=parameters.dropout,
            use_rslora=parameters.rslora,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        )

    def whole_weights(self, parent: Mapping[str, Any] | None) -> bool:
        """Whether the version to continue from holds whole weights beside its LoRA; they are trained too."""
        return parent is not None and AdapterConfig.from_fields(parent).has_whole_weights

    def load(self, context: LoadContext[LoraParameters]) -> nn.Module:
        """The base with a fresh LoRA, or with that of the version to continue from."""
        base = load_base(context.base_folder, quant=self.quant, dtype=context.dtype, device=context.device)
        asked = self.config(context.parameters)
        if context.parent is not None:
            config = _continued(context.parent, asked, _defaulted(context.parameters))
            model: nn.Module = PeftModel.from_pretrained(base, str(context.parent), is_trainable=True, config=config)
            return model
        if mixes_experts(base):
            _leave_out_experts(asked, base)
        asked.fan_in_fan_out = any(isinstance(module, Conv1D) for module in base.modules())
        with warnings.catch_warnings():
            # GPT-2 has transposed layers beside normal ones; PEFT corrects the option for each, with a warning.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            try:
                wrapped: nn.Module = get_peft_model(base, asked)
            except ValueError as error:  # PEFT found none of the layers, or cannot adapt one
                raise InvalidInput(
                    f"target_modules: {error}", code="invalid_parameter", param="target_modules"
                ) from error
        return wrapped

    def save(self, model: nn.Module, folder: Path, context: SaveContext[LoraParameters]) -> dict[str, float]:
        """PEFT's own two files."""
        peft: Any = model
        peft.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return {"trained_parameters": float(trained)}


def _continued(parent: Path, asked: LoraConfig, defaulted: set[str]) -> LoraConfig:
    """The parent's own configuration with the new dropout; raise InvalidInput when the parent cannot be continued as a LoRA."""
    if (parent / EXACT).is_dir():
        raise InvalidInput(
            "the version to continue from is a full fine-tune, not a LoRA; continue it with --method full, or start "
            "without --from",
            code="invalid_parent",
        )
    found: Any = PeftConfig.from_pretrained(str(parent))
    if not isinstance(found, LoraConfig) or found.use_dora != asked.use_dora:
        raise InvalidInput(
            "the version to continue from was made by a trainer whose adapters are of another kind; continue it with that one, "
            "or start without --from",
            code="invalid_parent",
        )
    for name, field in PEFT_NAMES.items():
        before, wanted = _plain(getattr(found, field)), _plain(getattr(asked, field))
        if before != wanted and name not in defaulted:
            raise InvalidInput(
                f"the version to continue from has {name}={before}, {name}={wanted} was asked for; leave {name} out, or start "
                "without --from",
                code="invalid_parameter",
            )
    found.lora_dropout, found.inference_mode = asked.lora_dropout, False
    return found


def _plain(value: Any) -> Any:
    """Module names in one order, so that they compare and read alike."""
    return sorted(value) if isinstance(value, set) else value


def _defaulted(parameters: LoraParameters) -> set[str]:
    """Names of parameters at their defaults, which nobody may have asked for."""
    default = type(parameters)()
    return {name for name in parameters.__struct_fields__ if getattr(parameters, name) == getattr(default, name)}
