"""The DoRA trainer: the LoRA trainer with `use_dora`.

Tunery provides the loop, data, checkpoints, evaluation and publishing.
"""

from peft import LoraConfig

from tunery.plugins.trainers import LoraParameters
from tunery.plugins.trainers.lora import LoraTrainer


class DoraTrainer(LoraTrainer):
    """Decomposes each weight into a low-rank direction and a magnitude."""

    def config(self, parameters: LoraParameters) -> LoraConfig:
        """LoRA's configuration with DoRA switched on."""
        config = super().config(parameters)
        config.use_dora = True
        return config
