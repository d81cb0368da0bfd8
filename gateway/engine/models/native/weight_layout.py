"""The layout in which the native kernels read weights: panels of PANEL outputs, dense or quantized.

csrc/common.h describes it (`struct weight`).

Quantizing and packing happen once, when a base is first served; weights.py keeps the result.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch.nn import functional

from tunery.gateway.engine.models.native.kernels import PANEL
from tunery.gateway.engine.models.quantize import NF4_BLOCK, int8_codes, nf4_codes

__all__ = [
    "Format",
    "PackedWeight",
    "allocate_zeros",
    "pack_dense",
    "pack_int8",
    "pack_lora",
    "pack_nf4",
    "pad_to_panels",
]


class Format(IntEnum):
    """`enum format` in csrc/common.h."""

    BF16 = 0
    F32 = 1
    NF4 = 2
    INT8 = 3


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A linear layer's weight [n, k] in panels; `struct weight` says what `data`, `scales` and `group` are."""

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
        """Its outputs, padded to whole panels."""
        return self.panels * PANEL

    @property
    def bytes(self) -> int:
        """Memory of its tensors."""
        return sum(tensor.nbytes for tensor in (self.data, self.scales, self.bias) if tensor is not None)


def pad_to_panels(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` [n, ...] with rows of zeros up to whole panels."""
    missing = -tensor.shape[0] % PANEL
    return torch.cat((tensor, tensor.new_zeros((missing, *tensor.shape[1:])))) if missing else tensor


def pack_dense(weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedWeight:
    """Pack a weight [n, k] in its own dtype, bfloat16 (k even) or float32."""
    n, k = weight.shape
    rows = pad_to_panels(weight)
    if weight.dtype == torch.float32:
        data = rows.view(-1, PANEL, k).permute(0, 2, 1).contiguous()
        return PackedWeight(Format.F32, n, k, data, bias=_pack_bias(bias))
    data = rows.view(-1, PANEL, k // 2, 2).permute(0, 2, 1, 3).contiguous()
    return PackedWeight(Format.BF16, n, k, data, bias=_pack_bias(bias))


def pack_nf4(weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedWeight:
    """Quantize a weight [n, k], k even, to NF4 with double quantization as QLoRA does, and pack it."""
    n, k = weight.shape
    codes, maxima = nf4_codes(weight)
    # Of sixteen columns and two k: the low halves of the bytes are the first eight columns, the high halves the others.
    split = pad_to_panels(codes).view(-1, 3, 2, 8, k // 2, 2).permute(0, 4, 1, 2, 3, 5)
    data = (split[:, :, :, 0] | (split[:, :, :, 1] << 4)).reshape(-1, k // 2, PANEL).contiguous()
    group = math.gcd(NF4_BLOCK, k)
    blocks = torch.arange(0, n * k, group) // NF4_BLOCK
    scales = pad_to_panels(maxima[blocks].view(n, k // group)).view(-1, PANEL, k // group)
    return PackedWeight(Format.NF4, n, k, data, scales.permute(0, 2, 1).contiguous(), group, _pack_bias(bias))


def pack_int8(weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedWeight:
    """Quantize a weight [n, k] row by row to 8 bits, as LLM.int8 does without outliers, and pack it; k even."""
    n, k = weight.shape
    codes, maxima = int8_codes(weight)
    data = pad_to_panels(codes).view(-1, PANEL, k // 2, 2).permute(0, 2, 1, 3).contiguous()
    scales = pad_to_panels(maxima / 127.0).view(-1, PANEL)
    return PackedWeight(Format.INT8, n, k, data, scales, 0, _pack_bias(bias))


def pack_lora(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack a low-rank pair [r, k], [n, r]: `b` in panels like a weight, in bfloat16 both padded to an even rank."""
    if a.shape[0] % 2 and a.dtype != torch.float32:
        a, b = functional.pad(a, (0, 0, 0, 1)), functional.pad(b, (0, 1))
    return a, pack_dense(b).data


def allocate_zeros(count: int, dtype: torch.dtype, *, huge: bool = False) -> torch.Tensor:
    """`count` zeros in memory of their own, which the operating system backs as it is touched.

    `huge` asks for huge pages, for memory that is read whole in each step: fewer entries of the TLB cover it.
    """
    size = max(count, 1) * dtype.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=max(count, 1))[:count]


def _pack_bias(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else pad_to_panels(bias.float())
