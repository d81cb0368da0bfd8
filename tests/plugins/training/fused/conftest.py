"""The ways in which the same is computed: natively, and plainly in both dtypes."""

from __future__ import annotations

import pytest
import torch

from tunery.plugins.training.fused import kernels, products
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
    chosen, native = request.param
    if not native:
        for module in (kernels, products):
            monkeypatch.setattr(module, "load_kernels", lambda: None)
    return chosen
