"""What the engine needs from a base model in memory, and the settings that every implementation reads the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from tunery.gateway.engine.scheduling.page_allocator import pages_for

if TYPE_CHECKING:
    from tunery.gateway.engine.adapters.adapter import AdapterShape
    from tunery.gateway.engine.adapters.interface import ServedAdapter
    from tunery.gateway.engine.composition import AdapterSource
    from tunery.gateway.engine.config import EngineConfig
    from tunery.gateway.engine.scheduling.forward_batch import ForwardBatch

__all__ = ["DTYPES", "Model", "Reduction", "kv_cache_pages"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TYPICAL_CONTEXT = 2048
"""Tokens of a request that the KV cache has room for by default, for each request of a full batch."""


Reduction = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From logits float32 [R, n] to each row's argmax, int64 [R], and the log of its sum of exponentials, float32 [R]."""


class Model(Protocol):
    """A base model in memory with its KV cache, ready for adapters.

    `argmax_logsumexp` reduces rows of logits for the sampler, where the model does that faster than torch.
    """

    device: torch.device
    shape: AdapterShape
    vocab_size: int
    context_length: int
    base_bytes: int
    kv_pages: int
    argmax_logsumexp: Reduction | None

    def read_adapter(self, source: AdapterSource) -> ServedAdapter:
        """Read an adapter's weights for this base into main memory; called on another thread than `run`."""

    def place_adapter(self, adapter: Any) -> ServedAdapter:
        """The same adapter on the model's device; the same object when that is main memory."""

    def run(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a batch and return its logits [R, vocabulary] and final hidden states [H, hidden], both float32.

        R and H are the numbers of rows in `batch.logits` and `batch.hidden`. The next call overwrites what is returned.
        """


def kv_cache_pages(config: EngineConfig, context_length: int) -> int:
    """Pages of the KV cache: as configured, or enough for a full batch of requests of TYPICAL_CONTEXT tokens."""
    return pages_for(config.kv_tokens or config.max_batch * min(context_length, TYPICAL_CONTEXT))
