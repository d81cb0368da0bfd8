"""The LoRA trainer (arXiv 2106.09685): the base frozen, a low-rank pair on every linear layer trained in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tunery.plugins.quantization import Quant
from tunery.plugins.trainers import LoraParameters
from tunery.plugins.training.trainer import LoadContext, SaveContext, load_base
from tunery.registry.errors import InvalidInput

__all__ = ["LoraTrainer"]


class LoraTrainer:
    """Subclass it and override `config` for any other PEFT variant of LoRA."""

    quant: Quant = "none"

    def config(self, parameters: LoraParameters) -> LoraConfig:
        """What PEFT is asked for."""
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

    def load(self, context: LoadContext[LoraParameters]) -> nn.Module:
        """The base with fresh pairs, or with those of the version to continue from."""
        base = load_base(context.base_folder, quant=self.quant, dtype=context.dtype, device=context.device)
        if context.parent is not None:
            parent = json.loads((context.parent / "adapter_config.json").read_text())
            if parent.get("r") != context.parameters.r and "r" not in _defaulted(context.parameters):
                raise InvalidInput(
                    f"the version to continue from has rank {parent.get('r')}, r={context.parameters.r} was asked for; "
                    "leave r out, or start without --from",
                    code="invalid_parameter",
                )
            model: nn.Module = PeftModel.from_pretrained(base, str(context.parent), is_trainable=True)
            return model
        wrapped: nn.Module = get_peft_model(base, self.config(context.parameters))
        return wrapped

    def save(self, model: nn.Module, folder: Path, context: SaveContext[LoraParameters]) -> dict[str, float]:
        """PEFT's own two files."""
        peft: Any = model
        peft.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return {"trained_parameters": float(trained)}


def _defaulted(parameters: LoraParameters) -> set[str]:
    """Names whose value is the default, so that nobody can be said to have asked for it."""
    default = type(parameters)()
    return {name for name in parameters.__struct_fields__ if getattr(parameters, name) == getattr(default, name)}
