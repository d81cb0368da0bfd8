"""The DoRA trainer: LoRA's, with `use_dora`. Loop, data, checkpoints, evaluation and publishing are the host's."""

from peft import LoraConfig

from tunery.plugins.trainers import LoraParameters
from tunery.plugins.trainers.lora import LoraTrainer


class DoraTrainer(LoraTrainer):
    """Decomposes each weight into direction (low rank) and magnitude."""

    def config(self, parameters: LoraParameters) -> LoraConfig:
        """LoRA's configuration, decomposed."""
        config = super().config(parameters)
        config.use_dora = True
        return config
