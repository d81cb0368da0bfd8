"""Quantized as bitsandbytes does it, to the last bit: what an adapter was trained on is what it is served on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from tunery.gateway.engine.models.quantize import NF4_BLOCK, int8_codes, nf4_codes

bnb = pytest.importorskip("bitsandbytes.functional")


def check(weight: torch.Tensor) -> None:
    """Codes and maxima equal those of bitsandbytes."""
    codes, state = bnb.quantize_4bit(weight, blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4")
    pairs = codes.view(-1)
    expected = torch.stack((pairs >> 4, pairs & 15), dim=1).view(-1)[: weight.numel()].view(weight.shape)
    ours, maxima = nf4_codes(weight)
    assert torch.equal(ours, expected)
    assert torch.equal(maxima, bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset)
    codes, largest, _ = bnb.int8_vectorwise_quant(weight.to(torch.float16))
    assert all(map(torch.equal, int8_codes(weight), (codes, largest)))


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 300),
    pairs=st.integers(1, 200),
    scale=st.sampled_from([1e-4, 0.02, 1.0, 50.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_random_weights(seed: int, rows: int, pairs: int, scale: float, dtype: torch.dtype, spread: float) -> None:
    noise = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 2 * pairs, generator=noise) * scale
    check((weight * torch.exp(spread * torch.randn(rows, 1, generator=noise)).clamp(max=100.0)).to(dtype))


def test_weights_of_one_value() -> None:
    for value in (0.5, -3.0):
        check(torch.full((4, 64), value))
    codes, maxima = nf4_codes(torch.zeros(4, 64))
    assert codes.unique().tolist() == [7]
    assert maxima.tolist() == [0.0] * 4


def layers(folder: Path) -> Iterator[torch.Tensor]:
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as opened:
            yield from (opened.get_tensor(name) for name in opened.keys() if name.endswith("_proj.weight"))  # noqa: SIM118


@pytest.mark.slow
def test_layers_of_the_real_base(base_folder: Path) -> None:
    for weight in islice(layers(base_folder), 0, None, 8):
        check(weight)
