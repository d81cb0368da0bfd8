"""Owns the layout in which the native kernels read weights: panels of PANEL outputs (see kernels.c); refuses shapes that do not fit.

Packing and quantizing happen once, when a base is first served; what comes out is kept as ordinary tensors.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch.nn import functional

from tunery.gateway.engine.models.native.kernels import PANEL, Kernels, WeightRow

__all__ = ["Format", "Packed", "dense", "int8", "nf4", "pack_pair", "padded", "rows_of", "unpacked", "zeros"]

BLOCK = 64
"""Values that share a scale in NF4."""


class Format(IntEnum):
    """`enum format` of kernels.c."""

    BF16 = 0
    F32 = 1
    NF4 = 2
    INT8 = 3


@dataclass(frozen=True, slots=True)
class Packed:
    """A linear layer's weight [n, k] in panels; see `struct weight`. `scales` float32 and `group` are those of its format."""

    format: Format
    n: int
    k: int
    data: torch.Tensor
    scales: torch.Tensor | None = None
    group: int = 0
    bias: torch.Tensor | None = None

    @property
    def panels(self) -> int:
        """How many panels its outputs fill."""
        return -(-self.n // PANEL)

    @property
    def width(self) -> int:
        """Its outputs, padded."""
        return self.panels * PANEL

    @property
    def bytes(self) -> int:
        """Memory of its tensors."""
        return sum(tensor.nbytes for tensor in (self.data, self.scales, self.bias) if tensor is not None)


def padded(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` [n, ...] with zero rows up to whole panels."""
    missing = -tensor.shape[0] % PANEL
    return torch.cat((tensor, tensor.new_zeros((missing, *tensor.shape[1:])))) if missing else tensor


def dense(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Packed:
    """A weight [n, k] in its own dtype, bfloat16 (k even) or float32."""
    n, k = weight.shape
    rows = padded(weight)
    if weight.dtype == torch.float32:
        data = rows.view(-1, PANEL, k).permute(0, 2, 1).contiguous()
        return Packed(Format.F32, n, k, data, bias=_bias(bias))
    data = rows.view(-1, PANEL, k // 2, 2).permute(0, 2, 1, 3).contiguous()
    return Packed(Format.BF16, n, k, data, bias=_bias(bias))


def nf4(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Packed:
    """A weight [n, k] as bitsandbytes quantizes it for QLoRA: 4-bit normal floats, blocks of 64, double quantization."""
    import bitsandbytes.functional as bnb

    n, k = weight.shape
    codes, state = bnb.quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    maxima = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    pairs = codes.view(-1)
    index = padded(torch.stack((pairs >> 4, pairs & 15), dim=1).view(n, k))
    # Of sixteen columns and two k: the low halves of the bytes are the first eight columns, the high halves the others.
    split = index.view(-1, 3, 2, 8, k // 2, 2).permute(0, 4, 1, 2, 3, 5)
    data = (split[:, :, :, 0] | (split[:, :, :, 1] << 4)).reshape(-1, k // 2, PANEL).contiguous()
    group = math.gcd(BLOCK, k)
    blocks = torch.arange(0, n * k, group) // BLOCK
    scales = padded(maxima.float()[blocks].view(n, k // group)).view(-1, PANEL, k // group)
    return Packed(Format.NF4, n, k, data, scales.permute(0, 2, 1).contiguous(), group, _bias(bias))


def int8(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Packed:
    """A weight [n, k] as bitsandbytes quantizes it row by row to 8 bits."""
    import bitsandbytes.functional as bnb

    n, k = weight.shape
    codes, maxima, _ = bnb.int8_vectorwise_quant(weight.to(torch.float16))
    data = padded(codes).view(-1, PANEL, k // 2, 2).permute(0, 2, 1, 3).contiguous()
    scales = padded(maxima.float() / 127.0).view(-1, PANEL)
    return Packed(Format.INT8, n, k, data, scales, 0, _bias(bias))


def pack_pair(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A low-rank pair [r, k], [n, r] as the kernels read it: in bfloat16 with an even rank, `b` in panels like a weight [n, r]."""
    if a.shape[0] % 2 and a.dtype != torch.float32:
        a, b = functional.pad(a, (0, 0, 0, 1)), functional.pad(b, (0, 1))
    return a, dense(b).data


def zeros(count: int, dtype: torch.dtype, *, huge: bool = False) -> torch.Tensor:
    """`count` zeros in memory of their own, which the system backs as it is touched.

    `huge` asks for large pages, so that what is read whole in each step is found faster.
    """
    size = max(count, 1) * dtype.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=max(count, 1))[:count]


def rows_of(*weights: Packed) -> ctypes.Array[WeightRow]:
    """The `struct weight`s of linear layers that share their input; the tensors must outlive them."""
    rows = (WeightRow * len(weights))()
    for row, weight in zip(rows, weights, strict=True):
        row.data, row.format = weight.data.data_ptr(), weight.format
        row.scales = weight.scales.data_ptr() if weight.scales is not None else None
        row.bias = weight.bias.data_ptr() if weight.bias is not None else None
        row.k, row.panels, row.group = weight.k, weight.panels, weight.group
    return rows


def unpacked(kernels: Kernels, weight: Packed, dtype: torch.dtype) -> torch.Tensor:
    """The weight [n, k] that the kernels multiply `dtype` activations with, float32: its product with the identity."""
    bare = Packed(weight.format, weight.n, weight.k, weight.data, weight.scales, weight.group)
    unit = torch.eye(weight.k, dtype=dtype)
    out = torch.empty(weight.k, weight.width)
    wide = int(dtype == torch.float32)
    kernels.linear(
        rows_of(bare),
        1,
        unit.data_ptr(),
        weight.k,
        weight.k,
        out.data_ptr(),
        weight.width,
        None,
        0,
        0,
        0,
        None,
        0,
        wide,
    )
    return out[:, : weight.n].T.contiguous()


def _bias(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else padded(bias.float())
