"""Owns the loss of each token straight from the decoder's output, never holding the logits of more than a few hundred tokens.

For a frozen head the gradient is computed with the loss, in the same piece, from the same logits; a trained head computes them again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunery.plugins.training.fused.operations import cross_entropy
from tunery.plugins.training.fused.products import product

__all__ = ["fusable", "token_losses"]

PIECE = 256
"""Tokens whose logits are held at once."""


def fusable(head: Any) -> bool:
    """Whether a head is a frozen linear layer and nothing else."""
    return type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad


def token_losses(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihoods in nats, float32 [n], of `targets` int64 [n] after `hidden` [n, width]; `weight` [vocabulary, width]."""
    losses: torch.Tensor = _TokenLosses.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return losses


class _TokenLosses(torch.autograd.Function):
    """Cross-entropy in pieces; what is kept for backward is as large as `hidden`."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        needed = ctx.needs_input_grad[0]
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        slopes = torch.empty(hidden.shape if needed else (0,), dtype=weight.dtype, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), PIECE):
                piece = slice(start, start + PIECE)
                logits = product([(hidden[piece].to(weight.dtype), weight.T)])
                losses[piece] = cross_entropy(logits, targets[piece], slopes=needed)
                if needed:
                    product([(logits, weight)], out=slopes[piece])
        ctx.save_for_backward(slopes)
        ctx.dtype = hidden.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes * upstream[0][:, None]).to(ctx.dtype), None, None
