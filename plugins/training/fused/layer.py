"""A whole decoder layer as one differentiable function, with its backward pass written out.

After attention only the tokens that are wanted go on: in the last layer those that predict a trained token. For the
backward pass it keeps x, the middle of the layer, queries, keys, values, attention's weights and output, gate, up and
LoRA's inner values; norms and activations are computed again. Frozen weights are multiplied as they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from tunery.plugins.training.fused.attention import attend, attend_backward
from tunery.plugins.training.fused.operations import rms_norm, rms_norm_backward, rotate, swiglu, swiglu_backward
from tunery.plugins.training.fused.packed_layout import PackedLayout
from tunery.plugins.training.fused.projection import LinearGroup, LoraPairs, projection_of

__all__ = ["FusedLayer", "PackedTokens", "fuse_layer", "run_layer"]

Tensor = torch.Tensor

LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
"""Pre-norm layers with rotary positions and gated activations, and nothing else."""


class PackedTokens(msgspec.Struct, frozen=True):
    """How the tokens of a batch are packed, and the rotary `cosine` and `sine` of each, float32 [T, d]."""

    layout: PackedLayout
    cosine: Tensor
    sine: Tensor


class FusedLayer(msgspec.Struct, frozen=True):
    """A layer's parts: its linear layers grouped by input, and the settings of its norms and of attention.

    `norms` are the weights of both norms, float32 [D], `size` is that of a head.
    """

    qkv: LinearGroup
    o: LinearGroup
    gate_up: LinearGroup
    down: LinearGroup
    norms: tuple[Tensor, Tensor]
    epsilon: float
    size: int
    scale: float

    @property
    def groups(self) -> tuple[LinearGroup, ...]:
        """All linear layers, in the order in which they run."""
        return self.qkv, self.o, self.gate_up, self.down


def fuse_layer(module: Any) -> FusedLayer | None:
    """Take apart a layer of transformers; None if it is of another kind or more of it is trained than LoRA pairs."""
    recomputed = getattr(module, "gradient_checkpointing", False)
    if (
        type(module).__name__ not in LAYERS
        or module._forward_hooks
        or recomputed
        or module.mlp.config.hidden_act != "silu"
    ):
        return None
    attention, mlp, norms = module.self_attn, module.mlp, (module.input_layernorm, module.post_attention_layernorm)
    members = (
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (attention.o_proj,),
        (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    )
    groups = [group for modules in members if (group := _linear_group(modules)) is not None]
    if len(groups) < len(members) or any(norm.weight.requires_grad for norm in norms):
        return None
    qkv, o, gate_up, down = groups
    return FusedLayer(
        qkv=qkv,
        o=o,
        gate_up=gate_up,
        down=down,
        norms=(norms[0].weight.float(), norms[1].weight.float()),
        epsilon=float(norms[0].variance_epsilon),
        size=int(attention.head_dim),
        scale=float(attention.scaling),
    )


def _linear_group(modules: Sequence[Any]) -> LinearGroup | None:
    projections = [projection for module in modules if (projection := projection_of(module)) is not None]
    return LinearGroup(projections) if len(projections) == len(modules) else None


def run_layer(x: Tensor, layer: FusedLayer, tokens: PackedTokens, wanted: Tensor | None = None) -> Tensor:
    """The residual stream after the layer, in the dtype of `x` [T, D]; only of the rows `wanted`,
    int64 [n], if given."""
    trained = [weight for group in layer.groups for weight in group.trained]
    out: Tensor = _Layer.apply(x, layer, tokens, wanted, *trained)  # type: ignore[no-untyped-call]
    return out


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: FusedLayer, tokens: PackedTokens, wanted: Tensor | None, *trained: Tensor | None
    ) -> Tensor:
        pairs = [LoraPairs(group.projections, x.dtype) for group in layer.groups]
        with torch.autocast(x.device.type, enabled=False):
            out, kept = _forward(x, layer, tokens, wanted, pairs)
        ctx.layer, ctx.tokens, ctx.wanted, ctx.pairs = layer, tokens, wanted, pairs
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, trained = _backward(
            grads[0].contiguous(), ctx.layer, ctx.tokens, ctx.wanted, ctx.pairs, ctx.saved_tensors
        )
        return grad_x, None, None, None, *trained


def _forward(
    x: Tensor, layer: FusedLayer, tokens: PackedTokens, wanted: Tensor | None, pairs: Sequence[LoraPairs]
) -> tuple[Tensor, list[Tensor]]:
    """The layer's output, and what its backward pass needs."""
    first, scale1 = rms_norm(x, layer.norms[0], layer.epsilon)
    parts, inner1 = layer.qkv.forward(first, pairs[0])
    q, k, v = (part.view(len(x), -1, layer.size) for part in parts)
    rotate(q, tokens.cosine, tokens.sine)
    rotate(k, tokens.cosine, tokens.sine)
    attention, weights = attend(q, k, v, tokens.layout, layer.scale)
    attended, residual = _select(attention.view(len(x), -1), wanted), _select(x, wanted)
    (middle,), inner2 = layer.o.forward(attended, pairs[1], residual)
    second, scale2 = rms_norm(middle, layer.norms[1], layer.epsilon)
    (gate, up), inner3 = layer.gate_up.forward(second, pairs[2])
    (out,), inner4 = layer.down.forward(swiglu(gate, up), pairs[3], middle)
    return out, [x, scale1, q, k, v, attended, middle, scale2, gate, up, inner1, inner2, inner3, inner4, *weights]


def _backward(
    grad: Tensor,
    layer: FusedLayer,
    tokens: PackedTokens,
    wanted: Tensor | None,
    pairs: Sequence[LoraPairs],
    kept: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients by x and by every LoRA pair, from the layer's end to its beginning."""
    x, scale1, q, k, v, attended, middle, scale2, gate, up, inner1, inner2, inner3, inner4, *weights = kept
    grad_active, grad_inner = layer.down.backward([grad], pairs[3])
    grad_gate, grad_up, active = swiglu_backward(grad_active, gate, up)
    down = layer.down.weight_gradients([grad], active, inner4, grad_inner, pairs[3])

    grad_second, grad_inner = layer.gate_up.backward([grad_gate, grad_up], pairs[2])
    grad_middle, second = rms_norm_backward(grad_second, middle, layer.norms[1], scale2, grad)
    gate_up = layer.gate_up.weight_gradients([grad_gate, grad_up], second, inner3, grad_inner, pairs[2])

    grad_attended, grad_inner = layer.o.backward([grad_middle], pairs[1])
    o = layer.o.weight_gradients([grad_middle], attended, inner2, grad_inner, pairs[1])
    grad_attended, grad_middle = _scatter(grad_attended, wanted, len(x)), _scatter(grad_middle, wanted, len(x))
    grad_q, grad_k, grad_v = attend_backward(grad_attended.view(q.shape), q, k, v, weights, tokens.layout, layer.scale)
    rotate(grad_q, tokens.cosine, tokens.sine, inverse=True)
    rotate(grad_k, tokens.cosine, tokens.sine, inverse=True)

    grads = [part.view(len(x), -1) for part in (grad_q, grad_k, grad_v)]
    grad_first, grad_inner = layer.qkv.backward(grads, pairs[0])
    grad_x, first = rms_norm_backward(grad_first, x, layer.norms[0], scale1, grad_middle)
    return grad_x, [*layer.qkv.weight_gradients(grads, first, inner1, grad_inner, pairs[0]), *o, *gate_up, *down]


def _select(x: Tensor, wanted: Tensor | None) -> Tensor:
    """The rows of `x` that are wanted."""
    return x if wanted is None else x[wanted]


def _scatter(x: Tensor, wanted: Tensor | None, count: int) -> Tensor:
    """`x` at the wanted ones of `count` rows, zeros elsewhere."""
    return x if wanted is None else x.new_zeros(count, x.shape[1]).index_copy_(0, wanted, x)
