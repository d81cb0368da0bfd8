"""The LoRA trainer (arXiv 2106.09685): the base frozen, a low-rank pair on every linear layer trained in float32."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunery.plugins.quantization import Quant
from tunery.plugins.trainers import EXACT, LoraParameters
from tunery.plugins.training.trainer import LoadContext, SaveContext, load_base
from tunery.registry.errors import InvalidInput
from tunery.registry.peft.config import AdapterConfig

__all__ = ["LoraTrainer"]


ALL_LINEAR = "all-linear"
_LINEAR = frozenset({"Linear", "Linear4bit", "Linear8bitLt"})
"""Not what is made from them, such as routers that choose."""
_PROJECTIONS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""What PEFT takes for experts' weights, whatever else is called so."""


def mixes_experts(model: nn.Module) -> bool:
    """Whether rows are sent to some of a layer's experts: their weights lie in one tensor each, or one module each."""
    return any(parameter.dim() == 3 or ".experts." in name for name, parameter in model.named_parameters())


def linear_beside_experts(model: nn.Module) -> list[str]:
    """Last names of the linear layers that all rows go through: attention's, in a mixture of experts."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    linear = {
        name
        for name, module in model.named_modules()
        if type(module).__name__ in _LINEAR and module is not head and ".experts." not in name
    }
    return sorted({name.rpartition(".")[2] for name in linear} - _PROJECTIONS)


def _leave_out_experts(asked: LoraConfig, base: nn.Module) -> None:
    """Name the layers that all rows go through where all were asked for; refuse experts, which PEFT would adapt and nobody serve."""
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

    def whole_weights(self, parent: Mapping[str, Any] | None) -> bool:
        """Whether the version to continue from has more than pairs: all it has is trained on."""
        return parent is not None and AdapterConfig.from_fields(parent).has_whole_weights

    def load(self, context: LoadContext[LoraParameters]) -> nn.Module:
        """The base with fresh pairs, or with those of the version to continue from."""
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
            # Of GPT-2's layers some lie the other way round and some do not; PEFT looks at each, and says so.
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
    """The parent's own configuration, with the dropout that is asked for; refuses what its pair cannot become."""
    if (parent / EXACT).is_dir():
        raise InvalidInput(
            "the version to continue from is a full fine-tune, which is no pair; continue it with --method full, or start "
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
    fixed = {"r": "r", "alpha": "lora_alpha", "rslora": "use_rslora", "target_modules": "target_modules"}
    for name, field in fixed.items():
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
    """Names of modules in one order, so that they compare and read alike."""
    return sorted(value) if isinstance(value, set) else value


def _defaulted(parameters: LoraParameters) -> set[str]:
    """Names whose value is the default, so that nobody can be said to have asked for it."""
    default = type(parameters)()
    return {name for name in parameters.__struct_fields__ if getattr(parameters, name) == getattr(default, name)}
