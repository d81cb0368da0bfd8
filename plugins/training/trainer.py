"""The interface of a trainer: it loads a model to train, and saves the result as files that can be served.

Everything else (rendering, splitting, batches, optimizer, evaluation, checkpoints, manifest,
publishing) is done by the host for every trainer.
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
    """What a trainer may use to load its model.

    `dtype` is the dtype of frozen weights and of measured figures (see `measuring_dtype`); trained weights become
    float32, whatever dtype a trainer gives them. `parent` is the folder of the version to continue from, or None.
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
    """What a trainer may use to save: the load context, and `evaluate`, which returns the mean held-out loss in nats
    per trained token of any model with the base's inputs (None when nothing was held out).

    A trainer whose files only approximate its model calls `record` with a model that equals the
    files; serving is compared with that one.
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
    """A trainer, imported only in the process that trains.

    `quant` is the quantization of the base in training, and of the base whose loss is compared.

    Optional members: `whole_weights(parent: Mapping[str, Any] | None) -> bool`, where `parent` is the adapter
    configuration of the version to continue from, returns True when weights of the base itself are trained and not a
    LoRA beside them; figures are then measured in float32, because such changes can be smaller than bfloat16 resolves.
    `save_evaluations: int` is how often `save` calls `evaluate`, which the quote takes into account.
    `saves_checkpoints: bool` is True when `save` is quick and leaves the model as it was: what a queued job has trained
    after each epoch is then kept as a model too. `objective(parameters) -> Objective` replaces the supervised loss.
    """

    quant: Quant

    def load(self, context: LoadContext[Any]) -> nn.Module:
        """Return the model on its device; parameters with `requires_grad` are trained. torch is already seeded."""

    def save(self, model: nn.Module, folder: Path, context: SaveContext[Any]) -> dict[str, float]:
        """Write the files to serve into `folder`, in PEFT layout; return metrics of the trainer's own."""


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of training steps: that of the parameter `precision`, or bfloat16 on hardware that
    multiplies it natively."""
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
    """The dtype in which losses and log-probabilities are measured when steps compute in `dtype`.

    The same, since serving rounds a LoRA as training does; float32 when whole weights are trained. `parent` is the
    adapter configuration of the version to continue from.
    """
    whole_weights: Callable[[Mapping[str, Any] | None], bool] | None = getattr(trainer, "whole_weights", None)
    return torch.float32 if whole_weights is not None and whole_weights(parent) else dtype


def load_trained(trainer: Trainer, context: LoadContext[Any]) -> nn.Module:
    """A trainer's model with every trained weight in float32; in a smaller dtype the optimizer's
    steps would be rounded away."""
    model = trainer.load(context)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    return model


def load_base(folder: Path, *, quant: Quant, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The base as transformers loads it, quantized as in serving."""
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
    """Keep bitsandbytes from packing weights for inference when a model is evaluated between steps:
    it could not be trained afterwards."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def _forget_unquantized(model: nn.Module) -> None:
    """Copy the few weights that are not quantized, which otherwise keep the file's pages in memory,
    and release the rest."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.clone()
    release_memory()
