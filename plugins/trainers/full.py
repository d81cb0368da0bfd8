"""The full trainer: every weight, in float32, saved exactly and as the low-rank delta that is served."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from tunery.plugins.quantization import Quant
from tunery.plugins.trainers import EXACT, FullParameters
from tunery.plugins.training.delta import SEARCHES, save_delta
from tunery.plugins.training.trainer import LoadContext, SaveContext, load_base

__all__ = ["FullTrainer"]


class FullTrainer:
    """Full fine-tuning."""

    quant: Quant = "none"
    save_evaluations = SEARCHES + 1

    def whole_weights(self, parent: Mapping[str, Any] | None) -> bool:
        """All of them, whatever it continues from."""
        return True

    def load(self, context: LoadContext[FullParameters]) -> nn.Module:
        """The base, or the parent's exact weights, with everything trained; a parent that is a pair is added to the base."""
        exact = context.parent / EXACT if context.parent else None
        whole = exact is not None and exact.is_dir()
        folder = exact if exact is not None and whole else context.base_folder
        model = load_base(folder, quant="none", dtype=torch.float32, device=context.device)
        if context.parent is not None and not whole:
            pair: Any = PeftModel.from_pretrained(model, str(context.parent))
            model = pair.merge_and_unload()
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
