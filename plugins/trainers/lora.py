"""The LoRA trainer (arXiv 2106.09685): the base is frozen, low-rank matrices on its linear layers
are trained in float32."""

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
from tunery.plugins.trainers.experts import has_experts, leave_out_experts
from tunery.plugins.trainers.parameters import PEFT_NAMES, LoraParameters
from tunery.plugins.training.trainer import LoadContext, SaveContext, load_base
from tunery.registry.errors import InvalidInput
from tunery.registry.peft.config import AdapterConfig

__all__ = ["LoraTrainer"]


class LoraTrainer:
    """Subclass it and override `config` for any other PEFT variant of LoRA."""

    quant: Quant = "none"
    saves_checkpoints = True

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
        config = self.config(context.parameters)
        if context.parent is not None:
            parent_config = _parent_config(context.parent, config, _defaulted(context.parameters))
            model: nn.Module = PeftModel.from_pretrained(
                base, str(context.parent), is_trainable=True, config=parent_config
            )
            return model
        if has_experts(base):
            leave_out_experts(config, base)
        config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in base.modules())
        with warnings.catch_warnings():
            # GPT-2 has transposed layers beside normal ones; PEFT corrects the option for each, with a warning.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            try:
                wrapped: nn.Module = get_peft_model(base, config)
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


def _parent_config(parent: Path, config: LoraConfig, defaulted: set[str]) -> LoraConfig:
    """The parent's own configuration with the new dropout; raise InvalidInput when the parent
    cannot be continued as a LoRA."""
    if (parent / EXACT).is_dir():
        raise InvalidInput(
            "the version to continue from is a full fine-tune, not a LoRA; continue it with --method full, or start "
            "without --from",
            code="invalid_parent",
        )
    parent_config: Any = PeftConfig.from_pretrained(str(parent))
    if not isinstance(parent_config, LoraConfig) or parent_config.use_dora != config.use_dora:
        raise InvalidInput(
            "the version to continue from was made by a trainer whose adapters are of another kind; continue it with that one, "
            "or start without --from",
            code="invalid_parent",
        )
    for name, field in PEFT_NAMES.items():
        before, wanted = _sorted(getattr(parent_config, field)), _sorted(getattr(config, field))
        if before != wanted and name not in defaulted:
            raise InvalidInput(
                f"the version to continue from has {name}={before}, {name}={wanted} was asked for; leave {name} out, or start "
                "without --from",
                code="invalid_parameter",
            )
    parent_config.lora_dropout, parent_config.inference_mode = config.lora_dropout, False
    return parent_config


def _sorted(value: Any) -> Any:
    """Module names in one order, so that they compare and read alike."""
    return sorted(value) if isinstance(value, set) else value


def _defaulted(parameters: LoraParameters) -> set[str]:
    """Names of parameters at their defaults, which nobody may have asked for."""
    default = type(parameters)()
    return {name for name in parameters.__struct_fields__ if getattr(parameters, name) == getattr(default, name)}
