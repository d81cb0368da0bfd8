"""Causal attention over packed sequences with shared prefixes, forward and backward.

Natively where that fits, otherwise in torch by two batched products a sequence. The attention weights are kept for the
backward pass; sequences of more than LONG tokens take torch's own attention, which keeps none and computes them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from tunery.plugins.training.fused import native_ops
from tunery.plugins.training.fused.kernels import Kernels
from tunery.plugins.training.fused.native_ops import HEAD_MULTIPLE, kernels_for
from tunery.plugins.training.fused.operations import causal_softmax, causal_softmax_backward
from tunery.plugins.training.fused.packed_layout import PackedLayout

__all__ = ["attend", "attend_backward", "packed_attention"]

Tensor = torch.Tensor

LONG = 1024
"""Tokens of context above which a sequence's square of attention weights is too large to keep."""


def attend(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, scale: float) -> tuple[Tensor, list[Tensor]]:
    """Attend from `q` [T, heads, d] to `k`, `v` [T, groups, d]; return [T, heads, d] and each sequence's attention
    weights.

    `groups` are the key-value heads (grouped-query attention). Weights are empty for long sequences; the native kernels
    put all of them into one tensor.
    """
    if (kernels := _kernels(q, k, v, layout)) is not None:
        out, weights = native_ops.attend(kernels, q, k, v, layout, scale)
        return out, [weights]
    out, kept = torch.empty_like(q), []
    for own, context in zip(layout.slices, layout.contexts, strict=True):
        if len(context) > LONG:
            out[own] = _long(q[own], k[context], v[context], scale)
            kept.append(q.new_empty(0))
            continue
        queries, keys, values = _grouped(q[own], k.shape[1]), _heads_first(k[context]), _heads_first(v[context])
        kept.append(causal_softmax(queries @ keys.transpose(1, 2), scale, len(context) - (own.stop - own.start)))
        _ungroup(kept[-1] @ values, out[own])
    return out, kept


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], layout: PackedLayout, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by q, k and v from `grad` [T, heads, d], the one by the output; float32 sums for shared tokens."""
    grad = grad.contiguous()
    if (kernels := _kernels(q, k, v, layout)) is not None:
        return native_ops.attend_backward(kernels, grad, q, k, v, weights[0], layout, scale)
    groups, grad_q = k.shape[1], torch.empty_like(q)
    grad_k, grad_v = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (k, v))
    for own, context, kept in zip(layout.slices, layout.contexts, weights, strict=True):
        if len(context) > LONG:
            grad_q[own], of_keys, of_values = _long_backward(grad[own], q[own], k[context], v[context], scale)
        else:
            queries, keys, values = _grouped(q[own], groups), _heads_first(k[context]), _heads_first(v[context])
            grads = _grouped(grad[own], groups)
            scores = causal_softmax_backward(kept, grads @ values.transpose(1, 2), scale)
            _ungroup(scores @ keys, grad_q[own])
            of_keys = (scores.transpose(1, 2) @ queries).transpose(0, 1)
            of_values = (kept.transpose(1, 2) @ grads).transpose(0, 1)
        # A context names no token twice, so this is the same sum every time.
        grad_k[context] += of_keys.float()
        grad_v[context] += of_values.float()
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, scale: float) -> Tensor:
    """`attend` for autograd."""
    out: Tensor = _PackedAttention.apply(q, k, v, layout, scale)  # type: ignore[no-untyped-call]
    return out


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, scale: float) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            out, weights = attend(q, k, v, layout, scale)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        return *attend_backward(grads[0], q, k, v, weights, ctx.layout, ctx.scale), None, None


def _kernels(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout) -> Kernels | None:
    return kernels_for(q, k, v) if q.shape[2] % HEAD_MULTIPLE == 0 and layout.longest_context <= LONG else None


def _heads_first(x: Tensor) -> Tensor:
    """[L, groups, d] as [groups, L, d]."""
    return x.transpose(0, 1).contiguous()


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Query heads [L, heads, d] stacked by the key-value head that they share: [groups, heads / groups * L, d]."""
    length, heads, size = x.shape
    return x.view(length, groups, heads // groups, size).permute(1, 2, 0, 3).reshape(groups, -1, size)


def _ungroup(x: Tensor, out: Tensor) -> None:
    """Undo `_grouped` into `out`."""
    length, heads, size = out.shape
    groups = len(x)
    out.view(length, groups, heads // groups, size).copy_(x.view(groups, -1, length, size).permute(2, 0, 1, 3))


def _long(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention by torch, which keeps no weights."""
    queries, keys, values = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    prefix, mask = len(k) - len(q), None
    if prefix:
        mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(prefix)
    out = functional.scaled_dot_product_attention(
        queries, keys, values, mask, is_causal=not prefix, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[0].transpose(0, 1)


def _long_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        q, k, v = (tensor.detach().requires_grad_() for tensor in (q, k, v))
        return torch.autograd.grad(_long(q, k, v, scale), (q, k, v), grad)
