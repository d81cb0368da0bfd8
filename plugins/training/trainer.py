"""Owns what a trainer is: something that gives the loop a model to train and turns the result into servable files.

Everything else (rendering, splitting, batches, optimizer, evaluation, checkpoints, manifest, publishing) is the host's, so
every trainer has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from tunery.plugins.parameters import TrainingParameters
from tunery.plugins.quantization import Quant
from tunery.plugins.runtime.memory import release_memory

__all__ = [
    "LoadContext",
    "SaveContext",
    "Trainer",
    "compute_dtype",
    "dtype_name",
    "load_base",
    "load_trained",
    "measuring_dtype",
]

P = TypeVar("P", bound=TrainingParameters)


class LoadContext(Generic[P]):
    """What a trainer may use to build its model.

    `dtype` is what frozen weights are kept in, and what figures are measured in (see `measuring_dtype`); trained weights are
    float32, whatever a trainer makes of them. `parent` holds the files of the version to continue from, or is None.
    """

    def __init__(
        self, *, base_folder: Path, parameters: P, device: torch.device, dtype: torch.dtype, parent: Path | None
    ) -> None:
        self.base_folder = base_folder
        self.parameters = parameters
        self.device = device
        self.dtype = dtype
        self.parent = parent


class SaveContext(Generic[P]):
    """What a trainer may use to save: as for loading, and `evaluate`, the mean held-out loss in nats per trained token of any
    model that takes the base's inputs (None when nothing was held out).

    A trainer whose files say something else than its model, because they only approximate it, calls `record` with a model that
    says what the files do; serving is compared with that.
    """

    def __init__(
        self,
        *,
        load: LoadContext[P],
        evaluate: Callable[[nn.Module], float] | None,
        base_loss: float | None,
        eval_loss: float | None,
        record: Callable[[nn.Module], None] | None = None,
    ) -> None:
        self.load = load
        self.evaluate = evaluate
        self.base_loss = base_loss
        self.eval_loss = eval_loss
        self.record = record or (lambda model: None)


class Trainer(Protocol):
    """A trainer's heavy half, imported only in the process that trains.

    `quant` is the quantization of the base it trains on, and that its base loss is measured on.

    A trainer that changes weights of the base themselves, instead of low-rank pairs beside them, says so with a method
    `whole_weights(parent: Mapping[str, Any] | None) -> bool`, where `parent` is the adapter configuration of the version to
    continue from: its figures are then measured in float32, because a change may be smaller than bfloat16 can tell.
    One that evaluates while it saves says how often by an attribute `save_evaluations`, so that it can be quoted.
    """

    quant: Quant

    def load(self, context: LoadContext[Any]) -> nn.Module:
        """The model to train, on its device; what has `requires_grad` is trained. Randomness is already seeded."""

    def save(self, model: nn.Module, folder: Path, context: SaveContext[Any]) -> dict[str, float]:
        """Write what is served into `folder` in PEFT layout; returns extra metrics."""


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What steps compute in: bfloat16 where the hardware multiplies it natively, unless the parameters say otherwise."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return (
        torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else torch.float32
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def measuring_dtype(trainer: Trainer, parent: Mapping[str, Any] | None, dtype: torch.dtype) -> torch.dtype:
    """What losses and log-probabilities are measured in, where steps compute in `dtype`.

    The same, as serving rounds a pair as training does; but float32 where whole weights are trained. `parent` is the adapter
    configuration of the version to continue from.
    """
    asked: Callable[[Mapping[str, Any] | None], bool] | None = getattr(trainer, "whole_weights", None)
    return torch.float32 if asked is not None and asked(parent) else dtype


def load_trained(trainer: Trainer, context: LoadContext[Any]) -> nn.Module:
    """A trainer's model, with every trained weight in float32: an optimizer's steps would be lost in anything less."""
    model = trainer.load(context)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    return model


def load_base(folder: Path, *, quant: Quant, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The base as transformers loads it, quantized by the one recipe that serving uses too."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from tunery.plugins.quantization import quantization_config

    logging.disable_progress_bar()
    quantization = quantization_config(quant, dtype)
    options: dict[str, Any] = {} if quantization is None else {"quantization_config": quantization}
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": str(device)},
        local_files_only=True,
        trust_remote_code=False,
        **options,
    )
    if quantization is not None:
        _keep_differentiable(model)
        _forget_unquantized(model)
    return model


def _keep_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes from packing weights for inference when a model is evaluated between steps: it cannot be trained after."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def _forget_unquantized(model: nn.Module) -> None:
    """Let go of the file's pages, which the few weights that stay as they were would hold on to, and of what quantizing took."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.clone()
    release_memory()
