"""Owns running a model over rows of different lengths laid end to end, so that nothing is computed for padding, nor twice where rows begin
alike.

Each row attends causally to itself alone. Refuses models whose layers are not known to hand what they are given to the attention
function, and those with sliding windows: `packable` tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tunery.plugins.training.fused.attention import attend_differentiably
from tunery.plugins.training.fused.layer import Layer, Rows, layer_of, run_layer
from tunery.plugins.training.fused.layout import Layout

__all__ = ["decoder_of", "drops", "layers_of", "packable", "run_rows"]

IMPLEMENTATION = "tunery_rows"
KNOWN = {"llama", "mistral", "qwen2", "qwen3"}
"""Architectures whose logits are the head's product with the decoder's output, and whose layers pass keywords on."""


def decoder_of(model: nn.Module) -> Any:
    """The model with a head under PEFT's wrapper, where that wrapper does nothing but hold it; otherwise None."""
    found: Any = model
    if hasattr(found, "get_base_model"):
        if found.active_peft_config.is_prompt_learning:
            return None
        found = found.get_base_model()
    known = getattr(getattr(found, "config", None), "model_type", None) in KNOWN
    return found if known and hasattr(found, "get_decoder") else None


def packable(model: Any) -> bool:
    """Whether rows may be laid end to end: SDPA over whole rows, no dropout in attention, and no recomputation later."""
    config, decoder = model.config, model.get_decoder()
    windowed = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None) is not None
    dropped = getattr(config, "attention_dropout", 0.0) > 0
    plain = config._attn_implementation == "sdpa"
    recomputed = any(getattr(module, "gradient_checkpointing", False) for module in (decoder, *decoder.layers))
    return plain and not windowed and not dropped and not recomputed


def layers_of(model: Any) -> list[Layer]:
    """The decoder's layers taken apart; none where one of them is of an unknown kind."""
    layers = [layer_of(module) for module in model.get_decoder().layers]
    known = [layer for layer in layers if layer is not None]
    return known if len(known) == len(layers) else []


def drops(model: nn.Module) -> bool:
    """Whether values are dropped by chance, so that a token that is computed twice gets different ones."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 and module.training for module in model.modules())


def run_rows(
    model: Any, layers: Sequence[Layer], ids: torch.Tensor, layout: Layout, computed: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """The decoder's output for the tokens `wanted` of `ids`, row after row: [n, width], through `layers` where they are given.

    `computed` and `wanted` are bool [B, L], as `ids`; the computed ones lie as `layout` says and are all that is needed for the others.
    """
    positions = computed.nonzero()[:, 1]
    chosen = wanted[computed].nonzero()[:, 0]
    decoder = model.get_decoder()
    if layers:
        return _run_layers(decoder, layers, ids[computed], positions, layout, chosen)
    with _attention(model.config):
        output = decoder(input_ids=ids[computed][None], position_ids=positions[None], use_cache=False, layout=layout)
    hidden: torch.Tensor = output.last_hidden_state[0][chosen]
    return hidden


def _run_layers(
    decoder: Any,
    layers: Sequence[Layer],
    ids: torch.Tensor,
    positions: torch.Tensor,
    layout: Layout,
    chosen: torch.Tensor,
) -> torch.Tensor:
    """The same through layers that were taken apart."""
    x = decoder.embed_tokens(ids)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    cosine, sine = decoder.rotary_emb(x.new_empty(0, dtype=torch.float32), positions[None])
    rows = Rows(layout, cosine[0].contiguous(), sine[0].contiguous())
    for layer in layers[:-1]:
        x = run_layer(x, layer, rows)
    hidden: torch.Tensor = decoder.norm(run_layer(x, layers[-1], rows, chosen))
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
    layout: Layout,
    scaling: float | None = None,
    **ignored: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of rows: query [1, heads, tokens, d] to [1, tokens, heads, d]."""
    narrow = torch.is_autocast_enabled(query.device.type)
    dtype = torch.get_autocast_dtype(query.device.type) if narrow else query.dtype
    q, k, v = (tensor[0].transpose(0, 1).to(dtype).contiguous() for tensor in (query, key, value))
    scale = scaling or q.shape[2] ** -0.5
    return attend_differentiably(q, k, v, layout, scale)[None], None
