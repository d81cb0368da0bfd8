"""What a decoder layer computes besides matrix products and attention, forward and backward.

Computed natively in one pass over memory where that fits, otherwise in torch. Everything is computed in float32 and
rounded once to the dtype of the input.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from tunery.plugins.training.fused import native_ops
from tunery.plugins.training.fused.native_ops import kernels_for

__all__ = [
    "causal_softmax",
    "causal_softmax_backward",
    "cross_entropy",
    "rms_norm",
    "rms_norm_backward",
    "rotate",
    "swiglu",
    "swiglu_backward",
]

Tensor = torch.Tensor


def cross_entropy(logits: Tensor, targets: Tensor, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Losses in nats, float32 [n], of `targets` int64 [n] under `logits` [n, vocabulary]; and whether no token is more
    likely than the target, bool [n].

    `with_gradient` overwrites the logits with their gradient.
    """
    kernels = kernels_for(logits)
    if kernels is not None:
        return native_ops.cross_entropy(kernels, logits, targets, with_gradient=with_gradient)
    wide, column = logits.float(), targets[:, None]
    log_z = wide.logsumexp(dim=1, keepdim=True)
    wanted = wide.gather(1, column)[:, 0]
    losses, correct = log_z[:, 0] - wanted, wanted >= wide.amax(dim=1)
    if with_gradient:
        probabilities = (wide - log_z).exp_()
        logits.copy_(probabilities.scatter_add_(1, column, torch.full_like(log_z, -1.0)))
    return losses, correct


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """RMS norm (arXiv 1910.07467) of `x` [T, D] with `weight` float32 [D], and the inverse roots float32 [T, 1]."""
    kernels = kernels_for(x)
    if kernels is not None:
        return native_ops.rms_norm(kernels, x, weight, epsilon)
    scale = torch.rsqrt(x.float().pow(2).mean(dim=1, keepdim=True) + epsilon)
    return (x.float() * scale * weight).to(x.dtype), scale


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """`carried` plus the gradient by `x`, from `grad`, the one by the output; and the output again. All [T, D]."""
    kernels = kernels_for(x)
    if kernels is not None:
        return native_ops.rms_norm_backward(kernels, grad, x, weight, scale, carried)
    wide, scaled = x.float(), grad.float() * weight
    along = (scaled * wide).mean(dim=1, keepdim=True) * scale.pow(3)
    return (carried.float() + scaled * scale - wide * along).to(x.dtype), (wide * scale * weight).to(x.dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, *, inverse: bool = False) -> Tensor:
    """Apply rotary positions (arXiv 2104.09864) to `x` [T, heads, d], in place.

    `cosine` and `sine` are float32 [T, d] with equal halves. `inverse` rotates back, which is also the backward pass.
    """
    kernels = kernels_for(x)
    if kernels is not None:
        native_ops.rotate(kernels, x, cosine, sine, inverse=inverse)
        return x
    half = x.shape[2] // 2
    low, high = x[..., :half].float(), x[..., half:].float()
    c, s = cosine[:, None, :half], sine[:, None, :half] * (-1.0 if inverse else 1.0)
    return x.copy_(torch.cat((low * c - high * s, high * c + low * s), dim=2))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) times up (arXiv 2002.05202), any shape."""
    kernels = kernels_for(gate)
    if kernels is not None:
        return native_ops.swiglu(kernels, gate, up)
    return (functional.silu(gate.float()) * up.float()).to(gate.dtype)


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by `gate` and `up` from `grad`, the one by the output, which is overwritten; and the output again."""
    kernels = kernels_for(gate)
    if kernels is not None:
        return native_ops.swiglu_backward(kernels, grad, gate, up)
    d, g, u = grad.float(), gate.float(), up.float()
    sigmoid = torch.sigmoid(g)
    active = g * sigmoid
    grad_gate, grad_up = d * u * (sigmoid + active * (1 - sigmoid)), d * active
    return grad_gate.to(gate.dtype), grad_up.to(gate.dtype), (active * u).to(gate.dtype)


def causal_softmax(scores: Tensor, scale: float, prefix: int = 0) -> Tensor:
    """Attention weights in place of `scores` [n, k L, prefix + L]; row r attends to the first prefix + r mod L + 1."""
    weights = (scores.float() * scale).masked_fill_(_future(scores, prefix), -torch.inf)
    return scores.copy_(weights.softmax(dim=2))


def causal_softmax_backward(weights: Tensor, grad: Tensor, scale: float) -> Tensor:
    """The gradient by the scores, in place of `grad`, the gradient by the attention `weights`."""
    p, d = weights.float(), grad.float()
    return grad.copy_(p * (d - (p * d).sum(dim=2, keepdim=True)) * scale)


def _future(scores: Tensor, prefix: int) -> Tensor:
    """Bool [k L, prefix + L]: what each row must not see."""
    _, rows, length = scores.shape
    position = torch.arange(length, device=scores.device)
    return (position[None] > position[prefix:, None]).repeat(rows // (length - prefix), 1)
