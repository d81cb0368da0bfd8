"""Register the DoRA trainer (arXiv 2402.09353). Importing this is cheap: the trainer itself is named by a string."""

from collections.abc import Callable

from tunery.plugins import TrainerInfo, hookimpl
from tunery.plugins.trainers import LoraParameters


class DoraParameters(LoraParameters, frozen=True, kw_only=True):
    """LoRA's parameters with half the rank: the magnitude makes up for it."""

    r: int = 8


@hookimpl
def register_trainers(register: Callable[[TrainerInfo], None]) -> None:
    """Register the trainer."""
    register(
        TrainerInfo(
            name="dora",
            summary="low-rank pairs with a trained magnitude per output",
            entrypoint="tunery_dora_trainer:DoraTrainer",
            parameters=DoraParameters,
        )
    )
