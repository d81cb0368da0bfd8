"""Owns a whole decoder layer as one differentiable function, whose backward pass is written out.

What it keeps for that is x, the middle of the layer, queries, keys, values, attention's shares and output, gate, up and the pairs' inner
values; norms and activations are computed again. Frozen weights are multiplied in place wherever they lie.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from tunery.plugins.training.fused.attention import attend, attend_backward
from tunery.plugins.training.fused.operations import norm, norm_backward, rotate, swiglu, swiglu_backward
from tunery.plugins.training.fused.projection import Pair, Projection, projection_of

__all__ = ["Layer", "Rows", "layer_of", "run_layer"]

Tensor = torch.Tensor

ATTENTION, FEED_FORWARD = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
"""Pre-norm layers with rotary positions and gated activations, nothing else."""


class Rows(msgspec.Struct, frozen=True):
    """How rows lie end to end: their `lengths`, and the rotary `cosine` and `sine` of every token, float32 [T, d]."""

    lengths: tuple[int, ...]
    cosine: Tensor
    sine: Tensor


class Layer(msgspec.Struct, frozen=True):
    """The parts of a layer: q, k, v, o, gate, up, down; both norms' weights float32 [D] and epsilon; head size and attention's scale."""

    projections: tuple[Projection, ...]
    norms: tuple[Tensor, Tensor]
    eps: float
    head: int
    scale: float


def layer_of(module: Any) -> Layer | None:
    """A layer of transformers taken apart; None where it is of another kind, or more than pairs is trained in it."""
    if type(module).__name__ not in LAYERS or module.mlp.config.hidden_act != "silu":
        return None
    parts = [getattr(module.self_attn, name) for name in ATTENTION] + [
        getattr(module.mlp, name) for name in FEED_FORWARD
    ]
    projections = [projection for part in parts if (projection := projection_of(part)) is not None]
    norms = (module.input_layernorm, module.post_attention_layernorm)
    if len(projections) < len(parts) or any(each.weight.requires_grad for each in norms):
        return None
    attention = module.self_attn
    return Layer(
        tuple(projections),
        (norms[0].weight.float(), norms[1].weight.float()),
        float(norms[0].variance_epsilon),
        int(attention.head_dim),
        float(attention.scaling),
    )


def run_layer(x: Tensor, layer: Layer, rows: Rows) -> Tensor:
    """The residual stream [T, D] after the layer, in the dtype of `x`."""
    trained = [weight for projection in layer.projections for weight in (projection.a, projection.b)]
    out: Tensor = _Layer.apply(x, layer, rows, *trained)  # type: ignore[no-untyped-call]
    return out


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, rows: Rows, *trained: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            out, kept = _forward(x, layer, rows)
        ctx.layer, ctx.rows, ctx.pairs = layer, rows, kept.pop()
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        by_x, trained = _backward(
            slopes[0].contiguous(), ctx.layer, ctx.rows, ctx.pairs, ctx.saved_tensors, ctx.needs_input_grad[0]
        )
        return by_x, None, None, *trained


def _forward(x: Tensor, layer: Layer, rows: Rows) -> tuple[Tensor, list[Any]]:
    """The layer's output, what backward needs, and last the cast pairs."""
    pairs = [projection.pair(x.dtype) for projection in layer.projections]
    first, scale1 = norm(x, layer.norms[0], layer.eps)
    (q, iq), (k, ik), (v, iv) = (layer.projections[n].forward(first, pairs[n]) for n in range(3))
    q, k, v = (part.view(len(x), -1, layer.head) for part in (q, k, v))
    rotate(q, rows.cosine, rows.sine)
    rotate(k, rows.cosine, rows.sine)
    seen, shares = attend(q, k, v, rows.lengths, layer.scale)
    middle, io = layer.projections[3].forward(seen.view(len(x), -1), pairs[3], x)
    second, scale2 = norm(middle, layer.norms[1], layer.eps)
    (gate, ig), (up, iu) = (layer.projections[n].forward(second, pairs[n]) for n in (4, 5))
    out, idown = layer.projections[6].forward(swiglu(gate, up), pairs[6], middle)
    return out, [x, scale1, q, k, v, seen, middle, scale2, gate, up, iq, ik, iv, io, ig, iu, idown, *shares, pairs]


def _backward(
    slope: Tensor, layer: Layer, rows: Rows, pairs: list[Pair | None], kept: tuple[Any, ...], needed: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients by x, where it is needed, and by every pair."""
    x, scale1, q, k, v, seen, middle, scale2, gate, up, iq, ik, iv, io, ig, iu, idown, *shares = kept
    project, tokens = layer.projections, len(x)
    by_active, td = project[6].backward(slope, pairs[6])
    by_gate, by_up, active = swiglu_backward(by_active, gate, up)
    down = _of_pair(pairs[6], slope, active, idown, td)
    by_second, tg = project[4].backward(by_gate, pairs[4])
    by_second, tu = project[5].backward(by_up, pairs[5], by_second)
    by_middle, second = norm_backward(by_second, middle, layer.norms[1], scale2, slope)
    gates, ups = _of_pair(pairs[4], by_gate, second, ig, tg), _of_pair(pairs[5], by_up, second, iu, tu)

    by_seen, to = project[3].backward(by_middle, pairs[3])
    outs = _of_pair(pairs[3], by_middle, seen.view(tokens, -1), io, to)
    by_q, by_k, by_v = attend_backward(by_seen.view(q.shape), q, k, v, shares, rows.lengths, layer.scale)
    rotate(by_q, rows.cosine, rows.sine, back=True)
    rotate(by_k, rows.cosine, rows.sine, back=True)
    by_q, by_k, by_v = (part.view(tokens, -1) for part in (by_q, by_k, by_v))
    by_first, tq = project[0].backward(by_q, pairs[0])
    by_first, tk = project[1].backward(by_k, pairs[1], by_first)
    by_first, tv = project[2].backward(by_v, pairs[2], by_first)
    by_x, first = norm_backward(by_first, x, layer.norms[0], scale1, by_middle)
    queries, keys, values = (
        _of_pair(pair, by, first, inner, t)
        for pair, by, inner, t in zip(pairs, (by_q, by_k, by_v), (iq, ik, iv), (tq, tk, tv), strict=False)
    )
    return by_x if needed else None, [*queries, *keys, *values, *outs, *gates, *ups, *down]


def _of_pair(
    pair: Pair | None, slope: Tensor, x: Tensor, inner: Tensor | None, by_inner: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by a and b, float32: `slope` [T, out] by the output, `by_inner` [T, r] by the inner values."""
    if pair is None or inner is None or by_inner is None:
        return None, None
    return (by_inner.T @ x).float(), (slope.T @ inner).float().mul_(pair.scale)
