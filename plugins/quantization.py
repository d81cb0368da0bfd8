"""Owns the one recipe by which a base is quantized, for training and for serving alike; refuses any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

__all__ = ["Quant", "quantization_config"]

Quant = Literal["nf4", "int8", "none"]


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
