"""A frozen weight that bitsandbytes keeps in four bits, as an operand of products."""

from __future__ import annotations

from typing import Any

import torch

from tunery.plugins.quantization import NF4_BLOCK, dequantize_nf4
from tunery.plugins.training.fused.kernels import NF4Struct

__all__ = ["QuantizedWeight"]


class QuantizedWeight:
    """A bitsandbytes weight [out, in], to be multiplied without dequantizing it whole; `T` is its transpose."""

    def __init__(self, weight: Any, *, transposed: bool = False) -> None:
        self._weight, self.transposed = weight, transposed
        self.dtype: torch.dtype = weight.quant_state.dtype
        self.rows, self.width = weight.quant_state.shape

    @property
    def T(self) -> QuantizedWeight:  # noqa: N802 - as of a tensor
        """[in, out]."""
        return QuantizedWeight(self._weight, transposed=not self.transposed)

    @property
    def shape(self) -> tuple[int, int]:
        """As of a tensor."""
        return (self.width, self.rows) if self.transposed else (self.rows, self.width)

    def dequantize(self) -> torch.Tensor:
        """As a tensor."""
        weight = dequantize_nf4(self._weight)
        return weight.T if self.transposed else weight

    @property
    def fits_kernels(self) -> bool:
        """Whether the native kernels read it: NF4 with double quantization, from bfloat16, rows of whole blocks."""
        state = self._weight.quant_state
        known = state.quant_type == "nf4" and state.nested and state.blocksize == NF4_BLOCK
        return known and self.dtype == torch.bfloat16 and self.width % NF4_BLOCK == 0 and self.rows % 2 == 0

    def struct(self) -> NF4Struct:
        """For the kernels; this object must outlive it."""
        state = self._weight.quant_state
        parts = (self._weight.data, state.absmax, state.code, state.state2.code, state.state2.absmax)
        return NF4Struct(*(part.data_ptr() for part in parts), float(state.offset), state.state2.blocksize)
