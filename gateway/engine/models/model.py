"""Owns what the engine asks of a base in memory, and which kind of model answers for which base."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.models.native.kernels import Kernels, load_kernels, why_no_kernels
from tunery.gateway.engine.scheduling.forward_batch import ForwardBatch
from tunery.gateway.engine.scheduling.page_allocator import pages_for
from tunery.plugins.bases.architectures import refuse_folder

if TYPE_CHECKING:
    from tunery.gateway.engine.adapters.adapter import AdapterShape
    from tunery.gateway.engine.adapters.interface import ServedAdapter
    from tunery.gateway.engine.messages import AdapterSource

__all__ = ["DTYPES", "Model", "cache_pages", "open_model"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LONGEST_DEFAULT = 2048


class Model(Protocol):
    """A base in memory with its key-value cache, ready for adapters."""

    device: torch.device
    shape: AdapterShape
    vocab_size: int
    context_length: int
    base_bytes: int
    kv_pages: int

    def read_adapter(self, source: AdapterSource) -> ServedAdapter:
        """Read an adapter's weights for this base into main memory; called on another thread than `run`."""

    def place_adapter(self, adapter: Any) -> ServedAdapter:
        """The same adapter where the model computes; the same object when that is main memory."""

    def run(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute a step: logits float32 [len(step.logits), vocabulary] and final hidden states [len(step.hidden), size].

        What is returned is overwritten by the next call.
        """

    def argmax_logsumexp(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The index of the largest logit (int64 [R]) and the log of the sum of exponentials [R] of each row of `logits` [R, n]."""


def open_model(config: EngineConfig, *, clock: Callable[[], float] = time.monotonic) -> tuple[Model, float]:
    """The base of `config` in memory, and how many seconds that took.

    On a CPU with the native kernels' instructions, a base of the Llama kind is served by our own decoder; everything else, GPUs
    included, by transformers' modelling code.
    """
    started = clock()
    refuse_folder(Path(config.base_folder), f"the base {config.base_name!r}")
    kernels = _kernels(config)
    if kernels is not None:
        from tunery.gateway.engine.models.native.decoder import Decoder, supports

        if supports(config):
            return Decoder(config, kernels), clock() - started
    from tunery.gateway.engine.models.torch.model import TorchModel

    return TorchModel(config), clock() - started


def _kernels(config: EngineConfig) -> Kernels | None:
    """The native kernels where they are of use; says so where they would be and cannot be had."""
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    if config.kernels != "auto" or not on_cpu:
        return None
    kernels = load_kernels()
    if kernels is None:
        sys.stderr.write(f"engine: it runs without native kernels and is slower for that: {why_no_kernels()}\n")
    return kernels


def cache_pages(config: EngineConfig, context_length: int) -> int:
    """Pages of the key-value cache: as configured, or enough for a full batch of middling requests."""
    return pages_for(config.kv_tokens or config.max_batch * min(context_length, LONGEST_DEFAULT))
