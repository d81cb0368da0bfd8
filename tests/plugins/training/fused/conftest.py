"""Each operation is tested natively in bfloat16, and in torch in both dtypes."""

from __future__ import annotations

import pytest
import torch

from tunery.plugins.training.fused import native_ops
from tunery.plugins.training.fused.kernels import load_kernels

WAYS = [
    pytest.param(
        (torch.bfloat16, True),
        marks=pytest.mark.skipif(load_kernels() is None, reason="no native kernels on this machine"),
        id="native",
    ),
    pytest.param((torch.bfloat16, False), id="plain-bfloat16"),
    pytest.param((torch.float32, False), id="plain-float32"),
]


@pytest.fixture(params=WAYS)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    chosen: torch.dtype
    chosen, native = request.param
    if not native:
        monkeypatch.setattr(native_ops, "load_kernels", lambda: None)
    return chosen
