"""Matrices that native kernels read and write, checked when they are made rather than in every call."""

from __future__ import annotations

import torch

__all__ = ["Matrix", "check_vector"]


class Matrix:
    """`tensor` [rows, columns], float32 or bfloat16 on the CPU, with contiguous rows `stride` elements apart.

    Raise ValueError for any other tensor. The address is kept, so the tensor must not be resized.
    """

    __slots__ = ("_address", "_row_bytes", "columns", "dtype", "rows", "stride", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        if tensor.dim() != 2 or tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                f"kernels take float32 or bfloat16 matrices on the CPU, not {tensor.dtype} {tuple(tensor.shape)}"
            )
        if tensor.shape[1] > 1 and tensor.stride(1) != 1:
            raise ValueError(f"kernels take contiguous rows, not columns {tensor.stride(1)} elements apart")
        self.tensor = tensor
        self.dtype = tensor.dtype
        self.rows, self.columns = tensor.shape
        self.stride = tensor.stride(0) if self.rows > 1 else max(self.columns, tensor.stride(0))
        self._address = tensor.data_ptr()
        self._row_bytes = self.stride * tensor.element_size()

    @property
    def wide(self) -> int:
        """1 for float32, 0 for bfloat16, as the kernels name their element types."""
        return int(self.dtype is torch.float32)

    def address(self, row: int = 0) -> int:
        """Where a row begins in memory."""
        return self._address + row * self._row_bytes


def check_vector(name: str, tensor: torch.Tensor, size: int | None = None) -> torch.Tensor:
    """Return `tensor`; raise ValueError unless it is a contiguous float32 vector on the CPU, of `size` if given."""
    fits = (
        tensor.dim() == 1 and tensor.dtype is torch.float32 and tensor.is_contiguous() and tensor.device.type == "cpu"
    )
    if not fits or (size is not None and len(tensor) != size):
        raise ValueError(
            f"{name} must be a contiguous float32 vector of {size} elements, not {tensor.dtype} {tuple(tensor.shape)}"
        )
    return tensor
