"""The DPO trainer (arXiv 2305.18290): LoRA trained on which of two answers is better."""

from __future__ import annotations

from tunery.plugins.trainers.lora import LoraTrainer
from tunery.plugins.trainers.parameters import DpoParameters
from tunery.plugins.training.objectives.preference import Preference

__all__ = ["DpoTrainer"]


class DpoTrainer(LoraTrainer):
    """LoRA with another objective; the model it starts from, a parent's adapter included, is the reference."""

    def objective(self, parameters: DpoParameters) -> Preference:
        """Direct preference optimization."""
        return Preference(
            beta=parameters.beta,
            label_smoothing=parameters.label_smoothing,
            kind=parameters.loss,
            sft_weight=parameters.sft_weight,
        )
