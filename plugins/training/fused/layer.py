"""Owns a whole decoder layer as one differentiable function, whose backward pass is written out.

After attention only the tokens that are wanted go on: of the last layer those that predict something. Kept for the backward pass are x,
the middle of the layer, queries, keys, values, attention's shares and output, gate, up and the pairs' inner values; norms and
activations are computed again. Frozen weights are multiplied in place wherever they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from tunery.plugins.training.fused.attention import attend, attend_backward
from tunery.plugins.training.fused.layout import Layout
from tunery.plugins.training.fused.operations import norm, norm_backward, rotate, swiglu, swiglu_backward
from tunery.plugins.training.fused.projection import Pairs, Readers, projection_of

__all__ = ["Layer", "Rows", "layer_of", "run_layer"]

Tensor = torch.Tensor

LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
"""Pre-norm layers with rotary positions and gated activations, nothing else."""


class Rows(msgspec.Struct, frozen=True):
    """How rows lie end to end, and the rotary `cosine` and `sine` of every token, float32 [T, d]."""

    layout: Layout
    cosine: Tensor
    sine: Tensor


class Layer(msgspec.Struct, frozen=True):
    """The parts of a layer: who reads the first norm (q, k, v), attention (o), the second norm (gate, up) and the activation (down).

    Both norms' weights float32 [D] and epsilon; the size of a head and attention's scale.
    """

    heads: Readers
    out: Readers
    gates: Readers
    down: Readers
    norms: tuple[Tensor, Tensor]
    eps: float
    size: int
    scale: float

    @property
    def readers(self) -> tuple[Readers, ...]:
        """All four, in the order in which they run."""
        return self.heads, self.out, self.gates, self.down


def layer_of(module: Any) -> Layer | None:
    """A layer of transformers taken apart; None where it is of another kind, or more than pairs is trained in it."""
    recomputed = getattr(module, "gradient_checkpointing", False)
    if (
        type(module).__name__ not in LAYERS
        or module._forward_hooks
        or recomputed
        or module.mlp.config.hidden_act != "silu"
    ):
        return None
    attention, feed, norms = module.self_attn, module.mlp, (module.input_layernorm, module.post_attention_layernorm)
    groups = (
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (attention.o_proj,),
        (feed.gate_proj, feed.up_proj),
        (feed.down_proj,),
    )
    readers = [found for group in groups if (found := _readers(group)) is not None]
    if len(readers) < len(groups) or any(each.weight.requires_grad for each in norms):
        return None
    heads, out, gates, down = readers
    return Layer(
        heads=heads,
        out=out,
        gates=gates,
        down=down,
        norms=(norms[0].weight.float(), norms[1].weight.float()),
        eps=float(norms[0].variance_epsilon),
        size=int(attention.head_dim),
        scale=float(attention.scaling),
    )


def _readers(modules: Sequence[Any]) -> Readers | None:
    projections = [projection for module in modules if (projection := projection_of(module)) is not None]
    return Readers(projections) if len(projections) == len(modules) else None


def run_layer(x: Tensor, layer: Layer, rows: Rows, wanted: Tensor | None = None) -> Tensor:
    """The residual stream [T, D] after the layer, in the dtype of `x`; [n, D] of the tokens `wanted` int64 [n] where only they are."""
    trained = [weight for readers in layer.readers for weight in readers.trained]
    out: Tensor = _Layer.apply(x, layer, rows, wanted, *trained)  # type: ignore[no-untyped-call]
    return out


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: Layer, rows: Rows, wanted: Tensor | None, *trained: Tensor | None
    ) -> Tensor:
        pairs = [Pairs(readers.projections, x.dtype) for readers in layer.readers]
        with torch.autocast(x.device.type, enabled=False):
            out, kept = _forward(x, layer, rows, wanted, pairs)
        ctx.layer, ctx.rows, ctx.wanted, ctx.pairs = layer, rows, wanted, pairs
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        by_x, trained = _backward(slopes[0].contiguous(), ctx.layer, ctx.rows, ctx.wanted, ctx.pairs, ctx.saved_tensors)
        return by_x, None, None, None, *trained


def _forward(
    x: Tensor, layer: Layer, rows: Rows, wanted: Tensor | None, pairs: Sequence[Pairs]
) -> tuple[Tensor, list[Tensor]]:
    """The layer's output, and what its backward pass needs."""
    first, scale1 = norm(x, layer.norms[0], layer.eps)
    parts, inner1 = layer.heads.forward(first, pairs[0])
    q, k, v = (part.view(len(x), -1, layer.size) for part in parts)
    rotate(q, rows.cosine, rows.sine)
    rotate(k, rows.cosine, rows.sine)
    attended, shares = attend(q, k, v, rows.layout, layer.scale)
    seen, before = _only(attended.view(len(x), -1), wanted), _only(x, wanted)
    (middle,), inner2 = layer.out.forward(seen, pairs[1], before)
    second, scale2 = norm(middle, layer.norms[1], layer.eps)
    (gate, up), inner3 = layer.gates.forward(second, pairs[2])
    (out,), inner4 = layer.down.forward(swiglu(gate, up), pairs[3], middle)
    return out, [x, scale1, q, k, v, seen, middle, scale2, gate, up, inner1, inner2, inner3, inner4, *shares]


def _backward(
    slope: Tensor, layer: Layer, rows: Rows, wanted: Tensor | None, pairs: Sequence[Pairs], kept: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients by x and by every pair, from the layer's end to its beginning."""
    x, scale1, q, k, v, seen, middle, scale2, gate, up, inner1, inner2, inner3, inner4, *shares = kept
    by_active, by_inner = layer.down.backward([slope], pairs[3])
    by_gate, by_up, active = swiglu_backward(by_active, gate, up)
    down = layer.down.gradients([slope], active, inner4, by_inner, pairs[3])

    by_second, by_inner = layer.gates.backward([by_gate, by_up], pairs[2])
    by_middle, second = norm_backward(by_second, middle, layer.norms[1], scale2, slope)
    gates = layer.gates.gradients([by_gate, by_up], second, inner3, by_inner, pairs[2])

    by_seen, by_inner = layer.out.backward([by_middle], pairs[1])
    out = layer.out.gradients([by_middle], seen, inner2, by_inner, pairs[1])
    by_seen, by_middle = _among(by_seen, wanted, len(x)), _among(by_middle, wanted, len(x))
    by_q, by_k, by_v = attend_backward(by_seen.view(q.shape), q, k, v, shares, rows.layout, layer.scale)
    rotate(by_q, rows.cosine, rows.sine, back=True)
    rotate(by_k, rows.cosine, rows.sine, back=True)

    parts = [part.view(len(x), -1) for part in (by_q, by_k, by_v)]
    by_first, by_inner = layer.heads.backward(parts, pairs[0])
    by_x, first = norm_backward(by_first, x, layer.norms[0], scale1, by_middle)
    return by_x, [*layer.heads.gradients(parts, first, inner1, by_inner, pairs[0]), *out, *gates, *down]


def _only(x: Tensor, wanted: Tensor | None) -> Tensor:
    """The rows of `x` that are wanted."""
    return x if wanted is None else x[wanted]


def _among(x: Tensor, wanted: Tensor | None, count: int) -> Tensor:
    """`x` at the wanted ones of `count` rows, zeros elsewhere."""
    return x if wanted is None else x.new_zeros(count, x.shape[1]).index_copy_(0, wanted, x)
