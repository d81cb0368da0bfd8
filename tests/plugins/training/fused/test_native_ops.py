"""The wrappers of training's native kernels refuse tensors that the kernels would misread."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tunery.plugins.training.fused import native_ops
from tunery.plugins.training.fused.kernels import Kernels, load_kernels
from tunery.plugins.training.fused.packed_layout import PackedLayout

KERNELS = load_kernels()


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.bfloat16)


def test_only_contiguous_bfloat16_on_the_cpu_is_taken() -> None:
    assert native_ops.kernels_for(zeros(2, 4)) is KERNELS
    assert native_ops.kernels_for(zeros(2, 4).float()) is None
    assert native_ops.kernels_for(zeros(2, 4).T) is None
    assert native_ops.kernels_for(zeros(2, 4), zeros(2, 8)[:, ::2]) is None


CALLS: dict[str, tuple[str, Callable[[Kernels], object]]] = {
    "int32 targets": (
        "targets must be",
        lambda k: native_ops.cross_entropy(k, zeros(2, 8), torch.zeros(2, dtype=torch.int32), with_gradient=False),
    ),
    "a narrow norm": ("a norm's weight must be", lambda k: native_ops.rms_norm(k, zeros(2, 8), zeros(8), 1e-5)),
    "a norm of another size": ("a norm's weight", lambda k: native_ops.rms_norm(k, zeros(2, 8), torch.ones(4), 1e-5)),
    "half a rotary table": (
        "a rotary table must be",
        lambda k: native_ops.rotate(k, zeros(2, 1, 8), torch.ones(2, 4), torch.ones(2, 4), inverse=False),
    ),
    "another gate": ("up must be", lambda k: native_ops.swiglu(k, zeros(2, 8), zeros(2, 4))),
    "keys of other tokens": (
        "keys and values must be",
        lambda k: native_ops.attend(k, zeros(4, 2, 32), zeros(3, 1, 32), zeros(4, 1, 32), PackedLayout([4]), 1.0),
    ),
    "terms of other shapes": ("is not", lambda k: native_ops.matmul_sum(k, [(zeros(2, 4), zeros(6, 8))], None, None)),
    "something added of another shape": (
        "cannot be added",
        lambda k: native_ops.matmul_sum(k, [(zeros(2, 4), zeros(4, 8))], zeros(2, 4), None),
    ),
}


@pytest.mark.skipif(KERNELS is None, reason="no native kernels on this machine")
@pytest.mark.parametrize("name", CALLS)
def test_what_a_kernel_would_misread_is_refused(name: str) -> None:
    assert KERNELS is not None
    message, call = CALLS[name]
    with pytest.raises(ValueError, match=message):
        call(KERNELS)
