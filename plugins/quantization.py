"""Owns the one recipe by which a base is quantized, for training and for serving alike; refuses any other."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

__all__ = ["Quant", "quantization_config", "unpacked"]

Quant = Literal["nf4", "int8", "none"]

NF4_BLOCK = 64
"""Values that share a maximum."""


def quantization_config(quant: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What to pass to `from_pretrained` so that the base is quantized as `quant` and computes in `dtype`.

    nf4 is QLoRA's (arXiv 2305.14314): normal-float 4 bit in blocks of 64 with double quantization. int8 is LLM.int8's row-wise
    weight quantization (arXiv 2208.07339) without its outlier columns: which columns those are depends on the rest of the
    batch. The engine multiplies the dequantized weights with unquantized activations.
    """
    from transformers import BitsAndBytesConfig

    if quant == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if quant == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return None


def unpacked(weight: Any) -> torch.Tensor:
    """A weight that bitsandbytes keeps in four bits, in the dtype and shape it was quantized from.

    On a CPU bitsandbytes 0.50 takes every row for whole blocks, which is wrong for rows that are none: it is shown blocks as rows.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit

    state = weight.quant_state
    shape, count = state.shape, state.shape.numel()
    if shape[-1] % NF4_BLOCK and count % NF4_BLOCK == 0:
        state = copy.copy(state)
        state.shape = torch.Size((count // NF4_BLOCK, NF4_BLOCK))
    values: torch.Tensor = dequantize_4bit(weight.data, state)
    return values.view(shape)
