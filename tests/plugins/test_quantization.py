"""Weights in four bits come back as they went in, to the nearest normal float, whatever their shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunery.gateway.engine.models.quantize import NORMAL_FLOATS, nf4_codes
from tunery.plugins.quantization import dequantize_nf4


@pytest.mark.parametrize("shape", [(64, 128), (40, 96), (10, 32)])
def test_rows_that_are_no_whole_blocks_are_unpacked_rightly(shape: tuple[int, int]) -> None:
    from bitsandbytes.nn.modules import Params4bit

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    whole: Any = Params4bit(weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True)
    packed = whole.to("cpu")
    codes, maxima = nf4_codes(weight)
    exact = torch.tensor(NORMAL_FLOATS)[codes.long()].view(-1) * maxima.repeat_interleave(64)
    torch.testing.assert_close(dequantize_nf4(packed), exact.view(shape))
