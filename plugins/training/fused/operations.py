"""Owns what a decoder layer computes besides matrix products, forward and backward: in one pass natively where that fits, plainly in torch otherwise.

Everything is computed in float32 and rounded once to the dtype of what was given.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from tunery.plugins.training.fused.kernels import native

__all__ = [
    "cross_entropy",
    "norm",
    "norm_backward",
    "rotate",
    "softmax",
    "softmax_backward",
    "swiglu",
    "swiglu_backward",
]

Tensor = torch.Tensor


def cross_entropy(logits: Tensor, targets: Tensor, *, slopes: bool) -> Tensor:
    """Losses in nats float32 [n] of `targets` int64 [n] under `logits` [n, vocabulary], which are used up: with `slopes` they become the gradient."""
    losses = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    kernels = native(logits)
    if kernels is not None:
        kernels.call("cross_entropy", logits, targets, losses, *logits.shape, int(slopes))
        return losses
    wide, wanted = logits.float(), targets[:, None]
    total = wide.logsumexp(dim=1, keepdim=True)
    losses.copy_((total - wide.gather(1, wanted))[:, 0])
    if slopes:
        shares = (wide - total).exp_()
        logits.copy_(shares.scatter_add_(1, wanted, torch.full_like(total, -1.0)))
    return losses


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMS norm (arXiv 1910.07467) of `x` [T, D] with `weight` float32 [D]; and the inverse roots float32 [T, 1]."""
    kernels = native(x)
    if kernels is None:
        scale = torch.rsqrt(x.float().pow(2).mean(dim=1, keepdim=True) + eps)
        return (x.float() * scale * weight).to(x.dtype), scale
    y, scale = torch.empty_like(x), torch.empty(len(x), 1)
    kernels.call("norm", x, weight, y, scale, *x.shape, eps)
    return y, scale


def norm_backward(slope: Tensor, x: Tensor, weight: Tensor, scale: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """`carried` plus the gradient by `x` where `slope` is that by the norm's output; and that output again. All [T, D]."""
    kernels = native(x)
    if kernels is None:
        wide, g = x.float(), slope.float() * weight
        along = (g * wide).mean(dim=1, keepdim=True) * scale.pow(3)
        return (carried.float() + g * scale - wide * along).to(x.dtype), (wide * scale * weight).to(x.dtype)
    out, y = torch.empty_like(x), torch.empty_like(x)
    kernels.call("norm_backward", slope, x, weight, scale, carried, out, y, *x.shape)
    return out, y


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, *, back: bool = False) -> Tensor:
    """Rotary positions (arXiv 2104.09864) in place: `x` [T, heads, d], `cosine` and `sine` float32 [T, d], halves alike; `back` undoes."""
    half, sign = x.shape[2] // 2, -1.0 if back else 1.0
    kernels = native(x)
    if kernels is None:
        low, high = x[..., :half].float(), x[..., half:].float()
        c, s = cosine[:, None, :half], sine[:, None, :half] * sign
        x.copy_(torch.cat((low * c - high * s, high * c + low * s), dim=2))
    else:
        kernels.call("rotate", x, cosine, sine, x.shape[0], x.shape[1], half, sign)
    return x


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) times up (arXiv 2002.05202), any shape."""
    kernels = native(gate)
    if kernels is None:
        return (functional.silu(gate.float()) * up.float()).to(gate.dtype)
    out = torch.empty_like(gate)
    kernels.call("swiglu", gate, up, out, gate.numel())
    return out


def swiglu_backward(slope: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by `gate` and `up` where `slope` is that by swiglu's output, and that output again; `slope` is used up."""
    kernels = native(gate)
    if kernels is None:
        d, g, u = slope.float(), gate.float(), up.float()
        share = torch.sigmoid(g)
        active = g * share
        found = d * u * (share + active * (1 - share)), d * active, active * u
        return tuple(tensor.to(gate.dtype) for tensor in found)  # type: ignore[return-value]
    of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
    kernels.call("swiglu_backward", slope, gate, up, of_gate, of_up, gate.numel())
    return of_gate, of_up, slope


def softmax(scores: Tensor, scale: float, before: int = 0) -> Tensor:
    """Causal shares in place: `scores` [n, k L, before + L], of which row r of k L sees the first before + r mod L + 1."""
    shares = (scores.float() * scale).masked_fill_(_hidden(scores, before), -torch.inf)
    return scores.copy_(shares.softmax(dim=2))


def softmax_backward(shares: Tensor, slope: Tensor, scale: float) -> Tensor:
    """The gradient by the scores of `softmax`, in place of `slope`, that by the `shares`."""
    p, d = shares.float(), slope.float()
    return slope.copy_(p * (d - (p * d).sum(dim=2, keepdim=True)) * scale)


def _hidden(scores: Tensor, before: int) -> Tensor:
    _, rows, seen = scores.shape
    position = torch.arange(seen, device=scores.device)
    return (position[None] > position[before:, None]).repeat(rows // (seen - before), 1)
