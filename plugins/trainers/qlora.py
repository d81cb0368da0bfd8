"""The QLoRA trainer (arXiv 2305.14314): LoRA on the base in NF4 with double quantization, exactly as it is served."""

from __future__ import annotations

from tunery.plugins.quantization import Quant
from tunery.plugins.trainers.lora import LoraTrainer

__all__ = ["QloraTrainer"]


class QloraTrainer(LoraTrainer):
    """LoRA whose base is four bits wide."""

    quant: Quant = "nf4"
