"""Owns quantizing weights as bitsandbytes does, bit for bit, without its import, which takes longer than the quantizing.

NF4 is QLoRA's (arXiv 2305.14314): normal floats of 4 bit in blocks of 64, whose maxima are quantized once more, to dynamic 8-bit
floats (arXiv 1511.04561) in blocks of 256. The 8-bit integers are LLM.int8's (arXiv 2208.07339), row by row.
"""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["BLOCK", "int8_codes", "nf4_codes"]

BLOCK = 64
"""Values that share a maximum in NF4."""
_MAXIMA = 256
"""Maxima that share one of their own."""
_BINS = 65535
_SMALLEST = 1e-38
# fmt: off
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


def nf4_codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a weight [n, k], k even or n*k a multiple of BLOCK, the 4-bit codes uint8 [n, k] and their blocks' maxima float32 [blocks].

    The maxima are as they are after their own quantization. The blocks run through the whole weight, row by row.
    """
    values = weight.reshape(-1).float()
    blocks = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    maxima = blocks.abs().amax(dim=1)
    scaled = torch.clamp(blocks * (1.0 / maxima.clamp(min=_SMALLEST)).view(-1, 1), -1, 1)
    codes = torch.bucketize(scaled, _between(torch.tensor(_NF4)), out_int32=True).to(torch.uint8)
    return codes.view(-1)[: len(values)].view(weight.shape), _requantized(maxima)


def int8_codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a weight [n, k], the codes int8 [n, k] and each row's maximum float32 [n]; 127 stands for the maximum."""
    half = weight.to(torch.float16)
    maxima = half.abs().amax(dim=1).float()
    return torch.round(half * (127.0 / maxima.unsqueeze(1))).to(torch.int8), maxima


def _requantized(maxima: torch.Tensor) -> torch.Tensor:
    """The maxima as they come back from their quantization."""
    mean = maxima.mean()
    centred = maxima - mean
    blocks = torch.nn.functional.pad(centred, (0, -len(centred) % _MAXIMA)).view(-1, _MAXIMA)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    bins = ((blocks * (1.0 / largest.clamp(min=_SMALLEST)) + 1) * (_BINS / 2) + 0.5).long()
    return (_nearest()[bins] * largest).view(-1)[: len(maxima)] + mean


@cache
def _nearest() -> torch.Tensor:
    """The dynamic float nearest to the middle of each of the bins, from -1 to 1, by which bitsandbytes looks them up."""
    table = _dynamic_floats()
    middles = torch.arange(_BINS + 1, dtype=torch.float64) * (2 / _BINS) - 1
    return table[torch.bucketize(middles.float(), _between(table))]


def _dynamic_floats() -> torch.Tensor:
    """The 256 values of a signed dynamic float of 8 bits: the smaller the exponent, the fewer bits are left for the fraction."""
    found = [0.0, 1.0]
    for exponent in range(7):
        steps = torch.linspace(0.1, 1, 2**exponent + 1)
        means = (steps[:-1] + steps[1:]) / 2.0
        for sign in (1, -1):
            found += (sign * 10 ** (exponent - 6) * means).tolist()
    return torch.tensor(sorted(found))


def _between(values: torch.Tensor) -> torch.Tensor:
    """What lies in the middle between neighbours."""
    return (values[:-1] + values[1:]) / 2
