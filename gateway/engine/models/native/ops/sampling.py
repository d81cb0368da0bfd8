"""What the sampler needs of rows of logits (csrc/sampling.c)."""

from __future__ import annotations

import torch

from tunery.gateway.engine.models.native.kernels import Kernels
from tunery.gateway.engine.models.native.ops.matrix import Matrix

__all__ = ["argmax_logsumexp"]


def argmax_logsumexp(kernels: Kernels, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reduce each row of `logits`, float32 [R, n].

    Return the index of its largest, int64 [R], and the log of its sum of exponentials, float32 [R].
    """
    matrix = Matrix(logits)
    if matrix.dtype is not torch.float32:
        raise ValueError(f"logits must be float32, not {matrix.dtype}")
    best = torch.empty(matrix.rows, dtype=torch.int64)
    log_z = torch.empty(matrix.rows)
    kernels.peaks(
        matrix.address(), matrix.stride, matrix.rows, matrix.columns, best.data_ptr(), log_z.data_ptr()
    )  # fmt: skip
    return best, log_z
