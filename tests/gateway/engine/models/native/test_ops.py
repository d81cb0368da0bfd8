"""The wrappers of native kernels refuse tensors that the kernels would misread, before a kernel sees them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tunery.gateway.engine.models.native import kernels as bindings
from tunery.gateway.engine.models.native.batch_metadata import BatchMetadata, LoraSegments
from tunery.gateway.engine.models.native.kernels import PANEL, Kernels, load_kernels
from tunery.gateway.engine.models.native.ops.attention import HeadLayout, RotaryEmbedding
from tunery.gateway.engine.models.native.ops.elementwise import RMSNorm, swiglu
from tunery.gateway.engine.models.native.ops.linear import LinearGroup, PackedEmbedding
from tunery.gateway.engine.models.native.ops.matrix import Matrix, check_vector
from tunery.gateway.engine.models.native.ops.sampling import argmax_logsumexp
from tunery.gateway.engine.models.native.weight_layout import pack_dense, pack_int8
from tunery.gateway.engine.scheduling.forward_batch import ForwardBatch
from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE

KERNELS = load_kernels()
needs_kernels = pytest.mark.skipif(
    KERNELS is None, reason="the native kernels were not built, or this CPU lacks AVX-512 BF16"
)
NO_LORA = LoraSegments(())


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Matrix:
    return Matrix(torch.zeros(rows, columns, dtype=dtype))


def test_python_and_c_agree_on_the_sizes_they_share() -> None:
    source = (Path(bindings.__file__).parent / "csrc" / "common.h").read_text()
    sizes = dict(re.findall(r"#define (PANEL|PAGE)\s+(\d+)", source))
    assert sizes == {"PANEL": str(PANEL), "PAGE": str(PAGE_SIZE)}


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(4), torch.zeros(2, 3, 4), torch.zeros(4, 4).half(), torch.zeros(4, 6)[:, ::2], torch.zeros(4, 6).T],
    ids=["a vector", "three axes", "another dtype", "every other column", "a transpose"],
)
def test_matrices_have_contiguous_rows_of_a_known_dtype(tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="kernels take"):
        Matrix(tensor)


def test_rows_may_be_padded() -> None:
    padded = torch.zeros(4, 10)
    view = Matrix(padded[:, :6])
    assert (view.rows, view.columns, view.stride) == (4, 6, 10)
    assert view.address(2) == padded[2].data_ptr()
    one = Matrix(padded[1:2, :6])
    assert one.address() == padded[1].data_ptr()


@pytest.mark.parametrize("tensor", [torch.zeros(2, 2), torch.zeros(4).bfloat16(), torch.zeros(8)[::2], torch.zeros(5)])
def test_vectors_are_contiguous_float32_of_their_size(tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="a gain must be a contiguous float32 vector of 4"):
        check_vector("a gain", tensor, 4)


def test_positions_and_slots_are_int64() -> None:
    good, bad = np.arange(3), np.arange(3, dtype=np.int32)
    with pytest.raises(ValueError, match="slots must be contiguous int64"):
        BatchMetadata(ForwardBatch(good, good, bad, (), (), (), (), ()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positions must be contiguous int64"):
        BatchMetadata(ForwardBatch(good, np.arange(6)[::2], good, (), (), (), (), ()))


def linear(kernels: Kernels) -> LinearGroup:
    return LinearGroup(kernels, [pack_dense(torch.zeros(10, 8))], torch.float32)


CALLS: dict[str, tuple[str, Callable[[Kernels], object]]] = {
    "another dtype": (
        "the input must be",
        lambda k: linear(k)(matrix(4, 8, torch.bfloat16), matrix(4, 48), NO_LORA, rows=4),
    ),
    "another width": ("the input must be", lambda k: linear(k)(matrix(4, 6), matrix(4, 48), NO_LORA, rows=4)),
    "too few rows": ("the input must be", lambda k: linear(k)(matrix(3, 8), matrix(4, 48), NO_LORA, rows=4)),
    "too few columns": ("the output must be", lambda k: linear(k)(matrix(4, 8), matrix(4, 40), NO_LORA, rows=4)),
    "a narrow output": (
        "the output must be",
        lambda k: linear(k)(matrix(4, 8), matrix(4, 48, torch.bfloat16), NO_LORA, rows=4),
    ),
    "different inputs": (
        "different numbers of inputs",
        lambda k: LinearGroup(k, [pack_dense(torch.zeros(4, n)) for n in (2, 4)], torch.float32),
    ),
    "a quantized embedding": ("cannot be read", lambda k: PackedEmbedding(k, pack_int8(torch.ones(4, 4)))),
    "int32 tokens": (
        "token ids must be",
        lambda k: PackedEmbedding(k, pack_dense(torch.zeros(4, 4)))(np.zeros(2, dtype=np.int32), matrix(2, 4)),
    ),
    "a norm of another size": (
        "the norm needs",
        lambda k: RMSNorm(k, torch.ones(6), 1e-5)(matrix(2, 8), matrix(2, 8), rows=2),
    ),
    "a norm of too few rows": (
        "needs as many",
        lambda k: RMSNorm(k, torch.ones(8), 1e-5)(matrix(2, 8), matrix(2, 8), rows=3),
    ),
    "a norm that adds bfloat16": (
        "what a norm adds",
        lambda k: RMSNorm(k, torch.ones(8), 1e-5)(
            matrix(2, 8), matrix(2, 8), rows=2, added=matrix(2, 8, torch.bfloat16)
        ),
    ),
    "gates without up": ("SwiGLU of 8 needs", lambda k: swiglu(k, matrix(2, 12), 8, matrix(2, 8), rows=2)),
    "narrow logits": ("logits must be float32", lambda k: argmax_logsumexp(k, torch.zeros(2, 8).bfloat16())),
    "rotary tables of whole heads": (
        "rotary tables must be",
        lambda k: RotaryEmbedding(k, HeadLayout(2, 1, 16), torch.zeros(4, 16), torch.zeros(4, 16), 1e-5),
    ),
}


@needs_kernels
@pytest.mark.parametrize("name", CALLS)
def test_what_a_kernel_would_misread_is_refused(name: str) -> None:
    assert KERNELS is not None
    message, call = CALLS[name]
    with pytest.raises(ValueError, match=message):
        call(KERNELS)
