"""The reduction over logits that sampling needs, in plain torch; the native kernels have one with the same result."""

from __future__ import annotations

import torch

__all__ = ["argmax_logsumexp"]


def argmax_logsumexp(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The index of the largest logit (int64 [R]) and the log of the sum of exponentials [R] of each row of `logits` [R, n]."""
    # Row by row: over all rows at once, the sum is split among threads differently for each number of rows.
    return logits.argmax(dim=-1), torch.stack([row.logsumexp(dim=0) for row in logits])
