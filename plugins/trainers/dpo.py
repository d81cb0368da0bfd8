"""The DPO trainer (arXiv 2305.18290): a low-rank pair taught by which of two answers is better."""

from __future__ import annotations

from tunery.plugins.trainers import DpoParameters
from tunery.plugins.trainers.lora import LoraTrainer
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
