"""Sums of matrix products, rounded once, with weights as the model holds them, NF4 included.

Computed natively where that is faster, otherwise in torch.
"""

from __future__ import annotations

import torch

from tunery.plugins.training.fused import native_ops
from tunery.plugins.training.fused.native_ops import Terms
from tunery.plugins.training.fused.quantized_weight import QuantizedWeight

__all__ = ["matmul_sum"]

Tensor = torch.Tensor


def matmul_sum(terms: Terms, onto: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """a1 @ b1 + a2 @ b2 + ... of pairs [T, k] and [k, n], plus `onto` [T, n]; written to `out` [T, n] if given."""
    terms = [(a, b.dequantize() if isinstance(b, QuantizedWeight) and not b.fits_kernels else b) for a, b in terms]
    kernels = native_ops.matmul_sum_kernels(terms, onto, out)
    if kernels is not None:
        return native_ops.matmul_sum(kernels, terms, onto, out)
    (a, b), *others = terms
    total = torch.mm(a, _dense(b)) if onto is None else torch.addmm(onto, a, _dense(b))
    for a, b in others:
        total.addmm_(a, _dense(b))
    return total if out is None else out.copy_(total)


def _dense(b: Tensor | QuantizedWeight) -> Tensor:
    return b.dequantize() if isinstance(b, QuantizedWeight) else b
