"""Sums of products are exact but for one rounding, natively and plainly, however the weights lie and at sizes that fill
no tile.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from tests.plugins.training.fused.test_operations import check, noise
from tunery.plugins.training.fused import native_ops
from tunery.plugins.training.fused.kernels import load_kernels
from tunery.plugins.training.fused.matmul import matmul_sum
from tunery.plugins.training.fused.quantized_weight import QuantizedWeight

ROWS, DEPTHS, COLUMNS = (1, 7, 25, 300), (2, 50, 576), (1, 16, 17, 33, 48, 500)


def exact(*terms: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return sum((a.double() @ b.double() for a, b in terms), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize(("rows", "depth"), list(product(ROWS, DEPTHS)))
def test_one_product(dtype: torch.dtype, rows: int, depth: int, turned: bool) -> None:
    for columns in COLUMNS:
        a = noise(rows, depth, seed=1, dtype=dtype)
        b = noise(columns, depth, seed=2, dtype=dtype).T if turned else noise(depth, columns, seed=2, dtype=dtype)
        check(matmul_sum([(a, b)]), exact((a, b)))


def test_a_sum_into_a_part_of_something(dtype: torch.dtype) -> None:
    inner = noise(90, 48, seed=1, dtype=dtype)
    terms = [
        (noise(90, 64, seed=2, dtype=dtype), noise(70, 64, seed=3, dtype=dtype).T),
        (inner[:, 16:32], noise(70, 16, seed=4, dtype=dtype).T),
        (noise(90, 20, seed=5, dtype=dtype), noise(20, 70, seed=6, dtype=dtype)),
    ]
    onto, out = noise(90, 70, seed=7, dtype=dtype), torch.zeros(90, 100, dtype=dtype)
    result = matmul_sum(terms, onto, out[:, 10:80])
    check(out[:, 10:80], exact(*terms) + onto.double())
    assert torch.equal(result, out[:, 10:80])
    assert not out[:, :10].any()
    assert not out[:, 80:].any()


def test_a_sum_deeper_than_a_panel(dtype: torch.dtype) -> None:
    a, b = noise(30, 9000, seed=1, dtype=dtype), noise(9000, 50, seed=2, dtype=dtype)
    c, d = noise(30, 4100, seed=3, dtype=dtype), noise(50, 4100, seed=4, dtype=dtype).T
    check(matmul_sum([(a, b), (c, d)]), exact((a, b), (c, d)))


@pytest.mark.skipif(load_kernels() is None, reason="no native kernels on this machine")
def test_what_kernels_do_not_fit_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(a: torch.Tensor, b: torch.Tensor) -> bool:
        return native_ops.matmul_sum_kernels([(a, b)]) is not None

    kernels = load_kernels()
    monkeypatch.setattr(kernels, "has_amx", False)
    a, b = torch.zeros(4, 6, dtype=torch.bfloat16), torch.zeros(6, 8, dtype=torch.bfloat16)
    assert fits(a, b)
    assert not fits(a.float(), b.float())
    assert not fits(a[:, :5], b[:5])
    assert not fits(torch.zeros(6, 4, dtype=torch.bfloat16).T, b)
    assert not fits(a[:, ::2], torch.zeros(12, 8, dtype=torch.bfloat16)[::4])
    monkeypatch.setattr(kernels, "has_amx", True)
    assert not fits(a, b)


def quantized_weight(rows: int, width: int, dtype: torch.dtype) -> Any:
    """A weight as bitsandbytes packs it: NF4, its scales packed too."""
    from bitsandbytes.nn.modules import Params4bit

    values = noise(rows, width, seed=9, dtype=dtype)
    return Params4bit(values, requires_grad=False, quant_type="nf4", compress_statistics=True)._quantize("cpu")


@pytest.mark.parametrize(("rows", "width"), [(96, 64), (50, 192), (2, 4608)], ids=str)
def test_four_bits_are_multiplied_as_if_unpacked(dtype: torch.dtype, rows: int, width: int) -> None:
    packed = QuantizedWeight(quantized_weight(rows, width, dtype))
    whole, x, grad = packed.dequantize(), noise(40, width, seed=1, dtype=dtype), noise(40, rows, seed=2, dtype=dtype)
    assert packed.fits_kernels == (dtype == torch.bfloat16)
    assert packed.shape == whole.shape
    assert packed.T.shape == whole.T.shape
    assert torch.equal(matmul_sum([(x, packed.T)]), matmul_sum([(x, whole.T)]))
    assert torch.equal(matmul_sum([(grad, packed)]), matmul_sum([(grad, whole)]))
    check(matmul_sum([(grad, packed)]), exact((grad, whole)))


@pytest.mark.parametrize(("rows", "width"), [(96, 80), (51, 64)], ids=str)
def test_what_is_packed_otherwise_is_unpacked(dtype: torch.dtype, rows: int, width: int) -> None:
    packed = QuantizedWeight(quantized_weight(rows, width, dtype))
    assert not packed.fits_kernels
    x = noise(40, width, seed=1, dtype=dtype)
    check(matmul_sum([(x, packed.T)]), exact((x, packed.dequantize().T)))


def test_the_number_of_threads_changes_nothing() -> None:
    a, b = noise(300, 576, seed=1, dtype=torch.bfloat16), noise(500, 576, seed=2, dtype=torch.bfloat16).T
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(matmul_sum([(a, b)]))
    finally:
        torch.set_num_threads(before)
    assert native_ops.matmul_sum_kernels([(a, b)]) is None or torch.equal(*results)
