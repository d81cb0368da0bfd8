"""Attention over the paged KV cache, registered with transformers as `tunery_paged`.

Arguments that it does not know are refused. Each sequence is computed on its own, so a row's result depends on its own
context and on nothing else in the batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import AttentionInterface

from tunery.gateway.engine.models.torch.forward_context import ForwardContext, SlotSpan
from tunery.gateway.engine.models.torch.kv_cache import KVCache
from tunery.registry.errors import ArtifactRefused

__all__ = ["ATTENTION", "PagedAttention", "register_attention"]

ATTENTION = "tunery_paged"

# Arguments of modelling code that change nothing here.
_HARMLESS = frozenset(
    {
        "position_ids",
        "cache_position",
        "use_cache",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
    }
)


def register_attention() -> None:
    """Teach transformers the name ATTENTION; each model's layers find their own PagedAttention.

    Harmless when repeated.
    """
    AttentionInterface.register(
        ATTENTION, lambda module, *tensors, **options: module.paged(module, *tensors, **options)
    )


class _Scores(NamedTuple):
    """How scores are made of products: scaled, capped at `softcap`, over the last `window` tokens, and beside the
    scores of `sinks` [heads]."""

    scale: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None


class PagedAttention:
    """The attention function of one model: write keys and values to the cache, then attend sequence by sequence."""

    def __init__(self, cache: KVCache, context: ForwardContext) -> None:
        self._cache = cache
        self._context = context

    def install(self, model: torch.nn.Module) -> None:
        """Become the attention of every layer of `model`, which was loaded with `attn_implementation=ATTENTION`."""
        layers: list[Any] = [module for module in model.modules() if hasattr(module, "layer_idx")]
        for layer in layers:
            layer.paged = self

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **extra: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attend; `query` [1, heads, T, size], `key` and `value` [1, kv heads, T, size] → [1, T, heads, size].

        `s_aux` [heads] are attention sinks: a score for each head that takes part in the softmax and adds nothing.
        """
        unknown = {name for name, given in extra.items() if given is not None} - _HARMLESS
        if unknown:
            raise ArtifactRefused(
                f"{type(module).__name__} asks attention for {', '.join(sorted(unknown))}, which the engine cannot do",
                code="unsupported_base",
            )
        context = self._context
        layer: int = module.layer_idx  # type: ignore[assignment]
        if context.slots is None:
            raise RuntimeError("attention was called outside a forward pass")
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        scores = _Scores(scale, sliding_window, softcap, s_aux)
        self._cache.write(layer, context.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
        result = query.new_zeros((query.shape[2], query.shape[1], value.shape[-1]))
        for span in context.spans:
            rows = query[0, :, span.start : span.end]
            result[span.start : span.end] = self._attend(layer, rows, span, scores)
        return result[None], None

    def _attend(self, layer: int, rows: torch.Tensor, span: SlotSpan, scores: _Scores) -> torch.Tensor:
        """Attention of one span: `rows` [heads, n, size] → [n, heads, size]."""
        count, window = rows.shape[1], scores.window
        slots = span.slots
        if window is not None and span.context > window + count - 1:
            slots = slots[span.context - (window + count - 1) :]
        keys, values = self._cache.read(layer, slots)
        windowed = window is not None and window < slots.shape[0]
        if scores.softcap is None and scores.sinks is None and not windowed and count == slots.shape[0]:
            whole = functional.scaled_dot_product_attention(
                rows[None], keys[None], values[None], is_causal=True, scale=scores.scale, enable_gqa=True
            )
            # Its softmax turns scores that are NaN or infinite into numbers, which the other one does not.
            lost = ~_largest_score(rows, keys).isfinite()
            return whole[0].transpose(0, 1).masked_fill(lost, torch.nan)
        return _grouped(rows, keys, values, scores if windowed else scores._replace(window=None))


def _largest_score(rows: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """An upper bound of the products of queries and keys, float32; NaN where one of them has a NaN."""
    query, key = (torch.linalg.vector_norm(tensor, torch.inf, dtype=torch.float32) for tensor in (rows, keys))
    largest: torch.Tensor = query * key * rows.shape[-1]
    return largest


def _grouped(rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: _Scores) -> torch.Tensor:
    """Grouped-query attention (arXiv 2305.13245) of the last n tokens over L: two products and a softmax in fp32."""
    heads, count, size = rows.shape
    kv_heads, length, _ = keys.shape
    scores = rows.reshape(kv_heads, -1, size) @ keys.transpose(1, 2)
    scores = scores.float().mul_(options.scale)
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    if count > 1:
        hidden = _hidden(count, length, options.window, rows.device)
        scores.view(kv_heads, -1, count, length).masked_fill_(hidden, -torch.inf)
    if options.sinks is not None:
        sink = options.sinks.float().view(kv_heads, -1, 1, 1).expand(-1, -1, count, -1).reshape(kv_heads, -1, 1)
        scores = torch.cat((scores, sink), dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :length].to(rows.dtype)
    return (weights @ values).view(heads, count, -1).transpose(0, 1)


def _hidden(count: int, length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Bool [count, length]: what each of the last `count` tokens must not see (the future, and beyond its window)."""
    own = torch.arange(length - count, length, device=device)[:, None]
    other = torch.arange(length, device=device)[None]
    hidden = other > own
    return hidden if window is None else hidden | (other <= own - window)
