"""RMS norm and SwiGLU (csrc/elementwise.c)."""

from __future__ import annotations

import torch

from tunery.gateway.engine.models.native.kernels import Kernels
from tunery.gateway.engine.models.native.ops.matrix import Matrix, check_vector

__all__ = ["RMSNorm", "swiglu"]


class RMSNorm:
    """RMS norm (arXiv 1910.07467) with `gain` float32 [hidden], fused with an addition to the residual stream."""

    def __init__(self, kernels: Kernels, gain: torch.Tensor, epsilon: float) -> None:
        self._kernels, self._epsilon = kernels, epsilon
        self._gain = check_vector("a norm's gain", gain)
        self._size = len(gain)

    def __call__(self, hidden: Matrix, out: Matrix, *, rows: int, start: int = 0, added: Matrix | None = None) -> None:
        """hidden += added, then out = norm(hidden), in rows `start` to `start + rows`.

        `hidden` and `added` are float32 [T, hidden], `out` [T, hidden] in either dtype; `hidden` and `out` are
        contiguous.
        """
        if hidden.dtype is not torch.float32 or hidden.stride != self._size or out.stride != self._size:
            raise ValueError(f"the norm needs contiguous rows of {self._size}, not {hidden.columns} and {out.columns}")
        if min(hidden.rows, out.rows) < start + rows:
            raise ValueError(f"the norm of {start + rows} rows needs as many, not {hidden.rows} and {out.rows}")
        address, stride = (None, 0) if added is None else (added.address(start), added.stride)
        if added is not None and (added.dtype is not torch.float32 or added.columns < self._size):
            raise ValueError(f"what a norm adds must be float32 [T, {self._size}], not {tuple(added.tensor.shape)}")
        self._kernels.norm(
            hidden.address(start), address, stride, rows, self._size, self._gain.data_ptr(), self._epsilon,
            out.address(start), out.wide,
        )  # fmt: skip


def swiglu(kernels: Kernels, gate_up: Matrix, up_column: int, out: Matrix, *, rows: int) -> None:
    """out = silu(gate) * up (arXiv 2002.05202), with gate and up in float32 `gate_up` from columns 0 and `up_column`.

    `out` [T, intermediate] is contiguous, in either dtype.
    """
    size = out.columns
    if gate_up.dtype is not torch.float32 or gate_up.columns < up_column + size or out.stride != size:
        raise ValueError(f"SwiGLU of {size} needs float32 of {up_column + size} columns or more, not {gate_up.columns}")
    if min(gate_up.rows, out.rows) < rows:
        raise ValueError(f"SwiGLU of {rows} rows needs as many, not {gate_up.rows} and {out.rows}")
    kernels.swiglu(gate_up.address(), gate_up.stride, up_column, rows, size, out.address(), out.wide)
