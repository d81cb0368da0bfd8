"""Decide which implementation runs a base model, and load it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.models.interface import Model
from tunery.gateway.engine.models.native.kernels import Kernels, load_kernels, why_no_kernels
from tunery.plugins.bases.architectures import refuse_folder
from tunery.plugins.runtime.log_format import notice

__all__ = ["open_model"]


def open_model(config: EngineConfig, *, clock: Callable[[], float] = time.monotonic) -> tuple[Model, float]:
    """Load the base of `config`, and return it with the seconds that took.

    On a CPU with the native kernels' instructions, Llama-like architectures run on the native decoder; everything else,
    GPUs included, runs on transformers' modelling code.
    """
    started = clock()
    refuse_folder(Path(config.base_folder), f"the base {config.base_name!r}")
    kernels = _usable_kernels(config)
    if kernels is not None:
        from tunery.gateway.engine.models.native.decoder import Decoder, supports

        if supports(config):
            return Decoder(config, kernels), clock() - started
    from tunery.gateway.engine.models.torch.model import TorchModel

    return TorchModel(config), clock() - started


def _usable_kernels(config: EngineConfig) -> Kernels | None:
    """The native kernels, on a CPU and unless `--kernels torch`; warn when they would be used and cannot be loaded."""
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    if config.kernels != "auto" or not on_cpu:
        return None
    kernels = load_kernels()
    if kernels is None:
        notice(f"engine: running without native kernels, which is slower: {why_no_kernels()}")
    return kernels
