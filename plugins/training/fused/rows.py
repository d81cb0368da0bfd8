"""Owns running a model over rows of different lengths laid end to end, so that nothing is computed for padding.

Each row attends causally to itself alone. Refuses models whose layers are not known to hand what they are given to the attention
function, and those with sliding windows: `packable` tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["decoder_of", "packable", "run_rows"]

IMPLEMENTATION = "tunery_rows"
KNOWN = {"llama", "mistral", "qwen2", "qwen3"}
"""Architectures whose logits are the head's product with the decoder's output, and whose layers pass keywords on."""


def decoder_of(model: nn.Module) -> Any:
    """The model with a head under PEFT's wrapper, where that wrapper does nothing but hold it; otherwise None."""
    found: Any = model
    if hasattr(found, "peft_config"):
        if found.active_peft_config.is_prompt_learning:
            return None
        found = found.get_base_model()
    known = getattr(getattr(found, "config", None), "model_type", None) in KNOWN
    return found if known and hasattr(found, "get_decoder") else None


def packable(model: Any) -> bool:
    """Whether rows may be laid end to end: SDPA over whole rows, no dropout in attention, and no recomputation later."""
    config = model.config
    windowed = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None) is not None
    dropped = getattr(config, "attention_dropout", 0.0) > 0
    plain = config._attn_implementation == "sdpa"
    recomputed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return plain and not windowed and not dropped and not recomputed


def run_rows(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The decoder's output for the tokens of `ids` [B, L] under `mask` [B, L], row after row: [tokens, width]."""
    kept = mask.bool()
    lengths = tuple(mask.sum(dim=1).tolist())
    positions = (mask.cumsum(dim=1) - 1)[kept]
    with _attention(model.config):
        output = model.get_decoder()(
            input_ids=ids[kept][None], position_ids=positions[None], use_cache=False, row_lengths=lengths
        )
    hidden: torch.Tensor = output.last_hidden_state[0]
    return hidden


@contextmanager
def _attention(config: Any) -> Iterator[None]:
    """Within, layers of `config` attend row by row."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attend)
    before = config._attn_implementation
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_lengths: tuple[int, ...],
    scaling: float | None = None,
    **ignored: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each row to itself: query [1, heads, tokens, d] to [1, tokens, heads, d]."""
    groups = query.shape[1] // key.shape[1]
    pieces = [tensor.split(row_lengths, dim=2) for tensor in (query, key, value)]
    rows = [
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=groups > 1)
        for q, k, v in zip(*pieces, strict=True)
    ]
    return torch.cat(rows, dim=2).transpose(1, 2), None
