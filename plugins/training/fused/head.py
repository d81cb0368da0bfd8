"""The loss of each token from the decoder's output, with the logits of a few hundred tokens in memory at a time.

The head is frozen: the gradient is computed together with the loss, chunk by chunk, from the same logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunery.plugins.training.fused.matmul import matmul_sum
from tunery.plugins.training.fused.operations import cross_entropy

__all__ = ["is_frozen_linear", "token_losses"]

CHUNK = 256
"""Tokens whose logits are held at once."""


def is_frozen_linear(head: Any) -> bool:
    """Whether a head is a frozen linear layer without bias, as `token_losses` needs it."""
    return type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad


def token_losses(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihoods in nats, float32 [n], of `targets` int64 [n] after `hidden` [n, width]; and whether no
    token is more likely than the target, bool [n].

    `weight` [vocabulary, width] is the head's.
    """
    scored: tuple[torch.Tensor, torch.Tensor] = _TokenLosses.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return scored


class _TokenLosses(torch.autograd.Function):
    """Cross-entropy in chunks; what is kept for the backward pass is as large as `hidden`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needed = ctx.needs_input_grad[0]
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        correct = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
        grads = torch.empty(hidden.shape if needed else (0,), dtype=weight.dtype, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), CHUNK):
                chunk = slice(start, start + CHUNK)
                logits = matmul_sum([(hidden[chunk].to(weight.dtype), weight.T)])
                losses[chunk], correct[chunk] = cross_entropy(logits, targets[chunk], with_gradient=needed)
                if needed:
                    matmul_sum([(logits, weight)], out=grads[chunk])
        ctx.save_for_backward(grads)
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grads,) = ctx.saved_tensors
        return (grads * upstream[0][:, None]).to(ctx.dtype), None, None
