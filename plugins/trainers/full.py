"""The full trainer: every weight, in float32, saved exactly and as the low-rank delta that is served."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from tunery.plugins.quantization import Quant
from tunery.plugins.trainers import EXACT
from tunery.plugins.trainers.parameters import FullParameters
from tunery.plugins.training.delta import SEARCHES, save_delta
from tunery.plugins.training.trainer import LoadContext, SaveContext, load_base
from tunery.registry.errors import InvalidInput

__all__ = ["FullTrainer", "unserved"]


class FullTrainer:
    """Full fine-tuning."""

    quant: Quant = "none"
    save_evaluations = SEARCHES + 1

    def whole_weights(self, parent: Mapping[str, Any] | None) -> bool:
        """Always: every weight is trained."""
        return True

    def load(self, context: LoadContext[FullParameters]) -> nn.Module:
        """The base, or the parent's exact weights, with everything trained; a parent that is a LoRA
        is merged into the base."""
        exact = context.parent / EXACT if context.parent else None
        whole = exact is not None and exact.is_dir()
        folder = exact if exact is not None and whole else context.base_folder
        model = load_base(folder, quant="none", dtype=torch.float32, device=context.device)
        fixed = unserved(model)
        if fixed is not None:
            raise InvalidInput(
                f"a full fine-tune of this base would change {fixed}, which is not served as a difference from the base; train it "
                "with --method lora",
                code="unsupported_base",
            )
        if context.parent is not None and not whole:
            adapted: Any = PeftModel.from_pretrained(model, str(context.parent))
            model = adapted.merge_and_unload()
        return model.requires_grad_(requires_grad=True)

    def save(self, model: nn.Module, folder: Path, context: SaveContext[FullParameters]) -> dict[str, float]:
        """The exact weights under `model/`, and the delta in PEFT layout."""
        base = load_base(context.load.base_folder, quant="none", dtype=torch.float32, device=context.load.device)
        metrics = save_delta(
            model,
            base,
            folder,
            fidelity=context.load.parameters.fidelity,
            evaluate=context.evaluate,
            base_loss=context.base_loss,
            exact_loss=context.eval_loss,
        )
        context.record(base)
        exact: Any = model
        exact.save_pretrained(folder / EXACT, safe_serialization=True)
        return metrics


def unserved(model: nn.Module) -> str | None:
    """A parameter whose change no adapter can hold (an expert's, a router's, an attention sink's,
    GPT-2's transposed weights), or None."""
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        plain = isinstance(module, nn.Linear | nn.Embedding) and ".experts." not in name
        norm = not any(module.children()) and (
            "norm" in type(module).__name__.lower() or all(parameter.dim() == 1 for parameter in own.values())
        )
        if own and not plain and not norm:
            return f"{name}.{next(iter(own))}"
    return None
