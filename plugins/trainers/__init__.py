"""The built-in trainers: full, lora, qlora and dpo, described without importing them."""

from __future__ import annotations

from collections.abc import Callable

from tunery.plugins.hookspecs import TrainerInfo, hookimpl
from tunery.plugins.trainers.parameters import DpoParameters, FullParameters, LoraParameters

__all__ = ["EXACT", "DpoParameters", "FullParameters", "LoraParameters", "register_trainers"]

EXACT = "model"
"""The folder of exact weights, inside a version: only a full fine-tune has one."""


@hookimpl
def register_trainers(register: Callable[[TrainerInfo], None]) -> None:
    """Register the built-in trainers."""
    register(
        TrainerInfo(
            name="full",
            summary="every weight; served as a low-rank delta, exact weights kept",
            entrypoint="tunery.plugins.trainers.full:FullTrainer",
            parameters=FullParameters,
        )
    )
    register(
        TrainerInfo(
            name="lora",
            summary="LoRA on all linear layers",
            entrypoint="tunery.plugins.trainers.lora:LoraTrainer",
            parameters=LoraParameters,
        )
    )
    register(
        TrainerInfo(
            name="qlora",
            summary="LoRA on the NF4 base that serving uses",
            entrypoint="tunery.plugins.trainers.qlora:QloraTrainer",
            parameters=LoraParameters,
        )
    )
    register(
        TrainerInfo(
            name="dpo",
            summary="LoRA trained on pairs of a better and a worse answer",
            entrypoint="tunery.plugins.trainers.dpo:DpoTrainer",
            parameters=DpoParameters,
            methods=("preference",),
        )
    )
