"""Quantize weights bit for bit as bitsandbytes does, without importing it, which would take longer than the quantizing.

NF4 is QLoRA's (arXiv 2305.14314): 4-bit normal floats in blocks of 64, whose maxima are themselves quantized to 8-bit
dynamic floats (arXiv 1511.04561) in blocks of 256. The 8-bit integers are LLM.int8's (arXiv 2208.07339), row by row.
"""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["NF4_BLOCK", "NORMAL_FLOATS", "int8_codes", "nf4_codes"]

NF4_BLOCK = 64
"""Values that share a maximum in NF4."""
_MAXIMA_BLOCK = 256
"""Maxima that share one of their own."""
_BINS = 65535
_SMALLEST = 1e-38
# fmt: off
NORMAL_FLOATS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


def nf4_codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a weight [n, k] to 4-bit codes uint8 [n, k] and the blocks' maxima float32 [blocks].

    n * k is even. The maxima are as double quantization leaves them.
    Blocks of NF4_BLOCK values run through the whole weight, row by row.
    """
    values = weight.reshape(-1).float()
    blocks = torch.nn.functional.pad(values, (0, -len(values) % NF4_BLOCK)).view(-1, NF4_BLOCK)
    maxima = blocks.abs().amax(dim=1)
    scaled = torch.clamp(blocks * (1.0 / maxima.clamp(min=_SMALLEST)).view(-1, 1), -1, 1)
    codes = torch.bucketize(scaled, _midpoints(torch.tensor(NORMAL_FLOATS)), out_int32=True).to(torch.uint8)
    return codes.view(-1)[: len(values)].view(weight.shape), _requantized(maxima)


def int8_codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a weight [n, k] to codes int8 [n, k] and each row's maximum float32 [n], which code 127 stands for."""
    half = weight.to(torch.float16)
    maxima = half.abs().amax(dim=1).float()
    return torch.round(half * (127.0 / maxima.unsqueeze(1))).to(torch.int8), maxima


def _requantized(maxima: torch.Tensor) -> torch.Tensor:
    """The maxima after quantizing and dequantizing them."""
    mean = maxima.mean()
    centred = maxima - mean
    blocks = torch.nn.functional.pad(centred, (0, -len(centred) % _MAXIMA_BLOCK)).view(-1, _MAXIMA_BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    bins = ((blocks * (1.0 / largest.clamp(min=_SMALLEST)) + 1) * (_BINS / 2) + 0.5).long()
    return (_nearest()[bins] * largest).view(-1)[: len(maxima)] + mean


@cache
def _nearest() -> torch.Tensor:
    """The dynamic float nearest to the middle of each bin between -1 and 1, bitsandbytes' look-up table."""
    table = _dynamic_floats()
    middles = torch.arange(_BINS + 1, dtype=torch.float64) * (2 / _BINS) - 1
    return table[torch.bucketize(middles.float(), _midpoints(table))]


def _dynamic_floats() -> torch.Tensor:
    """The 256 values of a signed 8-bit dynamic float, which has the fewer bits of fraction the smaller it is."""
    values = [0.0, 1.0]
    for exponent in range(7):
        steps = torch.linspace(0.1, 1, 2**exponent + 1)
        means = (steps[:-1] + steps[1:]) / 2.0
        for sign in (1, -1):
            values += (sign * 10 ** (exponent - 6) * means).tolist()
    return torch.tensor(sorted(values))


def _midpoints(values: torch.Tensor) -> torch.Tensor:
    """The middles between neighbouring values."""
    return (values[:-1] + values[1:]) / 2
