"""Stochastic rounding: the bfloat16 weight that a step computes with is, on average, the float32
weight that it updates.

Trained weights are float32, and autocast rounds them to the nearest bfloat16 in every product. At a small learning rate
most updates are smaller than half the distance between two bfloat16 numbers, so the forward pass would not see them.
Rounding up or down with the probability that makes the average exact (Gupta et al. 2015, arXiv 1502.02551) makes every
update count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["StochasticRounding"]

PIECE = 2**20
"""Random numbers drawn per step; longer weights reuse them."""
LOWER_HALF = 0xFFFF
"""The bits of a float32 that a bfloat16 does not have."""


class StochasticRounding:
    """Rounds `parameters` while a step computes; between steps they have their float32 values.

    The random numbers depend on `seed` and step alone, so a resumed run, and every process of a run, draws the same.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, seed: int) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.dtype == torch.float32]
        self._seed = seed
        self._rounded: list[torch.Tensor] = []

    @contextmanager
    def applied(self, step: int) -> Iterator[None]:
        """Within the block the weights are rounded to bfloat16 values, stored as float32."""
        exact = [parameter.data for parameter in self._parameters]
        self._rounded = self._rounded or [
            torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in exact
        ]
        noise = {device: _noise(self._seed, step, device) for device in {weight.device for weight in exact}}
        try:
            for parameter, weight, rounded in zip(self._parameters, exact, self._rounded, strict=True):
                round_stochastically(weight, noise[weight.device], out=rounded)
                parameter.data = rounded
            yield
        finally:
            for parameter, weight in zip(self._parameters, exact, strict=True):
                parameter.data = weight


def round_stochastically(weight: torch.Tensor, noise: torch.Tensor, *, out: torch.Tensor) -> None:
    """Write to `out` the float32 `weight` as bfloat16 numbers; `noise` is int32 [n], uniform in [0, 65536).

    Adding noise to the lower half of the bits and cutting it off rounds away from zero with a
    probability of the part that is cut off.
    """
    bits, into = weight.contiguous().view(torch.int32).flatten(), out.view(torch.int32).view(-1)
    for start in range(0, bits.numel(), len(noise)):
        piece = bits[start : start + len(noise)]
        torch.add(piece, noise[: len(piece)], out=into[start : start + len(piece)])
    into.bitwise_and_(~LOWER_HALF)


def _noise(seed: int, step: int, device: torch.device) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed}/{step}/rounding".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randint(0, LOWER_HALF + 1, (PIECE,), dtype=torch.int32, generator=generator, device=device)
