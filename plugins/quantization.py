"""How a base is quantized, the same for training and for serving."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

__all__ = ["Quant", "dequantize_nf4", "quantization_config"]

Quant = Literal["nf4", "int8", "none"]

NF4_BLOCK = 64
"""Weights that share an absolute maximum."""


def quantization_config(quant: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """The `quantization_config` for `from_pretrained`: quantized as `quant`, computing in `dtype`. None for "none".

    nf4 is QLoRA's (arXiv 2305.14314): 4-bit NormalFloat in blocks of 64 with double quantization. int8 is LLM.int8()'s
    row-wise weight quantization (arXiv 2208.07339) without outlier columns, because which columns are outliers depends
    on the rest of the batch. The engine multiplies the dequantized weights with unquantized activations.
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


def dequantize_nf4(weight: Any) -> torch.Tensor:
    """A 4-bit weight of bitsandbytes, dequantized to the dtype and shape that it was quantized from.

    On a CPU, bitsandbytes 0.50 assumes that every row is a whole number of blocks. Where it is not, the weight is
    passed as rows of one block each.
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
