"""Run a model over packed sequences, so that nothing is computed for padding, nor twice for shared prefixes.

Each sequence attends causally to itself alone. `supports_packing` refuses models whose layers are not known to hand
their keywords to the attention function, and those with sliding windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tunery.plugins.training.fused.attention import packed_attention
from tunery.plugins.training.fused.layer import FusedLayer, PackedTokens, fuse_layer, run_layer
from tunery.plugins.training.fused.packed_layout import PackedLayout

__all__ = ["causal_lm_of", "fused_layers", "run_packed", "supports_packing", "uses_dropout"]

IMPLEMENTATION = "tunery_rows"
ARCHITECTURES = {"llama", "mistral", "qwen2", "qwen3"}
"""Those whose logits are the head's product with the decoder's output, and whose layers pass keywords on."""


def causal_lm_of(model: nn.Module) -> Any:
    """The model under PEFT's wrapper, if it is of a known architecture and PEFT does not change its input, or None."""
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        if inner.active_peft_config.is_prompt_learning:
            return None
        inner = inner.get_base_model()
    known = getattr(getattr(inner, "config", None), "model_type", None) in ARCHITECTURES
    return inner if known and hasattr(inner, "get_decoder") else None


def supports_packing(model: Any) -> bool:
    """Whether sequences may be packed: SDPA without windows, no dropout in attention, no gradient checkpointing."""
    config, decoder = model.config, model.get_decoder()
    windowed = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None) is not None
    dropout = getattr(config, "attention_dropout", 0.0) > 0
    plain = config._attn_implementation == "sdpa"
    recomputed = any(getattr(module, "gradient_checkpointing", False) for module in (decoder, *decoder.layers))
    return plain and not windowed and not dropout and not recomputed


def fused_layers(model: Any) -> list[FusedLayer]:
    """The decoder's layers for `run_packed`; none if one of them cannot be fused."""
    layers = [fuse_layer(module) for module in model.get_decoder().layers]
    known = [layer for layer in layers if layer is not None]
    return known if len(known) == len(layers) else []


def uses_dropout(model: nn.Module) -> bool:
    """Whether dropout is active, so that sequences must not share what is computed for a prefix."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 and module.training for module in model.modules())


def run_packed(
    model: Any,
    layers: Sequence[FusedLayer],
    ids: torch.Tensor,
    layout: PackedLayout,
    computed: torch.Tensor,
    wanted: torch.Tensor,
) -> torch.Tensor:
    """The decoder's output [n, width] for the tokens `wanted` of `ids`, row after row; by fused `layers` if there are
    any.

    `computed` and `wanted` are bool [B, L] like `ids`; `layout` packs the computed tokens, which suffice for all.
    """
    positions = computed.nonzero()[:, 1]
    chosen = wanted[computed].nonzero()[:, 0]
    decoder = model.get_decoder()
    if layers:
        return _run_fused(decoder, layers, ids[computed], positions, layout, chosen)
    with _packed_attention(model.config):
        output = decoder(input_ids=ids[computed][None], position_ids=positions[None], use_cache=False, layout=layout)
    hidden: torch.Tensor = output.last_hidden_state[0][chosen]
    return hidden


def _run_fused(
    decoder: Any,
    layers: Sequence[FusedLayer],
    ids: torch.Tensor,
    positions: torch.Tensor,
    layout: PackedLayout,
    chosen: torch.Tensor,
) -> torch.Tensor:
    """The same through fused layers."""
    x = decoder.embed_tokens(ids)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    cosine, sine = decoder.rotary_emb(x.new_empty(0, dtype=torch.float32), positions[None])
    tokens = PackedTokens(layout, cosine[0].contiguous(), sine[0].contiguous())
    for layer in layers[:-1]:
        x = run_layer(x, layer, tokens)
    hidden: torch.Tensor = decoder.norm(run_layer(x, layers[-1], tokens, chosen))
    return hidden


@contextmanager
def _packed_attention(config: Any) -> Iterator[None]:
    """Within, layers of `config` attend over packed sequences."""
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
    layout: PackedLayout,
    scaling: float | None = None,
    **ignored: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, heads, T, d] to [1, T, heads, d]."""
    narrow = torch.is_autocast_enabled(query.device.type)
    dtype = torch.get_autocast_dtype(query.device.type) if narrow else query.dtype
    q, k, v = (tensor[0].transpose(0, 1).to(dtype).contiguous() for tensor in (query, key, value))
    scale = scaling or q.shape[2] ** -0.5
    return packed_attention(q, k, v, layout, scale)[None], None
