"""Weights in the kernels' layout: what they hold is bit for bit what bitsandbytes says they are."""

from __future__ import annotations

import ctypes

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import nn

from tests.gateway.engine.models.native.test_kernels import noise
from tunery.gateway.engine.models.native.kernels import PANEL, LoraStruct, load_kernels
from tunery.gateway.engine.models.native.ops.linear import dequantize
from tunery.gateway.engine.models.native.weight_layout import (
    PackedWeight,
    allocate_zeros,
    pack_dense,
    pack_int8,
    pack_lora,
    pack_nf4,
    pad_to_panels,
)

KERNELS = load_kernels()
needs_kernels = pytest.mark.skipif(
    KERNELS is None, reason="the native kernels were not built, or this CPU lacks AVX-512 BF16"
)
SHAPES = [(48, 64), (101, 64), (7, 2), (50, 90), (33, 258), (64, 576), (1, 128)]
DTYPES = [torch.float32, torch.bfloat16]


def multiplied(packed: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    assert KERNELS is not None
    return dequantize(KERNELS, packed, dtype)


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_four_bits_are_those_of_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = noise(*shape, seed=1, dtype=dtype) / 8
    codes, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    if weight.numel() % 64 == 0:
        # One block a row: bitsandbytes 0.50.2 loses count on the CPU where a row is no multiple of a block.
        state.shape = torch.Size((weight.numel() // 64, 64))
        expected = bnb.dequantize_4bit(codes.view(-1, 1), state).view(shape)
    else:
        expected = by_hand(codes, state, shape).to(dtype)
    assert torch.equal(multiplied(pack_nf4(weight), dtype), expected.float())


def by_hand(codes: torch.Tensor, state: bnb.QuantState, shape: tuple[int, int]) -> torch.Tensor:
    """QLoRA's definition (arXiv 2305.14314): code book times the block's maximum, itself stored in 8 bits."""
    maxima = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    pairs = codes.view(-1)
    index = torch.stack((pairs >> 4, pairs & 15), dim=1).view(-1)[: shape[0] * shape[1]].long()
    values: torch.Tensor = (state.code[index] * maxima[torch.arange(len(index)) // 64]).view(shape)
    return values


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eight_bits_are_those_of_bitsandbytes(shape: tuple[int, int]) -> None:
    weight = noise(*shape, seed=2) / 8
    codes, maxima, _ = bnb.int8_vectorwise_quant(weight.half())
    assert torch.equal(multiplied(pack_int8(weight), torch.float32), codes.float() * (maxima.float()[:, None] / 127.0))
    rounded = (codes.float() * (maxima.float()[:, None] / 127.0)).bfloat16().float()
    assert torch.equal(multiplied(pack_int8(weight), torch.bfloat16), rounded)


@needs_kernels
@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_layers_quantized_by_transformers_are_the_same(quant: str) -> None:
    from bitsandbytes.nn.modules import Int8Params, Linear4bit, Linear8bitLt, Params4bit

    from tunery.gateway.engine.models.torch.linear import weight_of

    weight = noise(96, 64, seed=3) / 8
    layer: nn.Module
    if quant == "nf4":
        layer = Linear4bit(64, 96, bias=False, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4")
        layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    else:
        layer = Linear8bitLt(64, 96, bias=False, has_fp16_weights=False, threshold=0.0)
        layer.weight = Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    assert torch.equal(multiplied({"nf4": pack_nf4, "int8": pack_int8}[quant](weight), torch.float32), weight_of(layer))


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dense_weights_keep_their_bits(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = noise(*shape, seed=4, dtype=dtype)
    packed = pack_dense(weight, noise(shape[0], seed=5))
    assert torch.equal(multiplied(packed, dtype), weight.float())
    assert (packed.panels, packed.width) == (-(-shape[0] // PANEL), pad_to_panels(weight).shape[0])
    assert packed.bytes == packed.width * (shape[1] * weight.element_size() + 4)


def test_what_is_padded_is_zero() -> None:
    assert torch.equal(pad_to_panels(torch.ones(50, 3))[50:], torch.zeros(46, 3))
    assert pad_to_panels(torch.ones(96)).shape == (96,)


@pytest.mark.parametrize("rank", [1, 2, 5, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pairs_take_their_true_rank_and_at_most_one_more(rank: int, dtype: torch.dtype) -> None:
    a, b = pack_lora(noise(rank, 34, seed=6, dtype=dtype), noise(48, rank, seed=7, dtype=dtype))
    kept = rank + (rank % 2 if dtype == torch.bfloat16 else 0)
    assert (a.shape, b.numel()) == ((kept, 34), 48 * kept)
    assert not a[rank:].any()


@pytest.mark.parametrize("huge", [False, True])
def test_zeros_are_writable_memory_of_their_own(huge: bool) -> None:
    tensor = allocate_zeros(1000, torch.bfloat16, huge=huge)
    assert (tensor.shape, tensor.dtype, int(tensor.count_nonzero())) == ((1000,), torch.bfloat16, 0)
    tensor.fill_(1.0)
    assert int(tensor.sum()) == 1000
    assert allocate_zeros(0, torch.float32).numel() == 0


def test_lora_structs_are_as_large_as_the_kernels_think() -> None:
    assert ctypes.sizeof(LoraStruct) == 7 * 8
