"""Products with the base's weights, whatever their quantization, batch-invariant in float32 on CPUs.

There every product is taken over blocks of exactly ROW_BLOCK rows: torch's kernels choose the order of summation by the
number of rows, so a fixed number makes a row's bits independent of how many neighbours it has.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

__all__ = ["ROW_BLOCK", "base_product", "batch_invariant_forward", "is_linear", "is_transposed", "linear", "weight_of"]

ROW_BLOCK = 32

Product = Callable[[torch.Tensor], torch.Tensor]


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a plain linear layer, quantized or not."""
    return type(module) in (nn.Linear, Conv1D) or type(module).__name__ in ("Linear4bit", "Linear8bitLt")


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored [in, out], as GPT-2's are."""
    return isinstance(module, Conv1D)


def base_product(module: nn.Module) -> Product:
    """The function x [..., in] → x W^T + b [..., out] of a linear layer, by its quantization."""
    kind = type(module).__name__
    if kind == "Linear4bit":
        return _nf4_product(module)
    if kind == "Linear8bitLt":
        return _int8_product(module)
    dense: Any = module
    if is_transposed(module):
        return lambda x: linear(x, dense.weight.T, dense.bias)
    return lambda x: linear(x, dense.weight, dense.bias)


def batch_invariant_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward of a layer that no adapter changes; a router's runs over blocks of ROW_BLOCK rows, as above."""
    if is_linear(module):
        return base_product(module)
    forward, own = module.forward, dict(module.named_parameters(recurse=False))
    if any(module.children()) or "weight" not in own or own["weight"].dim() != 2:
        return forward

    def blocked(x: torch.Tensor, *rest: Any, **options: Any) -> Any:
        if rest or options or x.dim() != 2 or x.dtype != torch.float32 or x.device.type != "cpu":
            return forward(x, *rest, **options)
        parts = [forward(block) for block in x.split(ROW_BLOCK)]
        return tuple(map(torch.cat, zip(*parts, strict=True))) if isinstance(parts[0], tuple) else torch.cat(parts)

    return blocked


def weight_of(module: nn.Module) -> torch.Tensor:
    """A linear layer's weight as the products above use it, dequantized: float32 [out, in]."""
    kind = type(module).__name__
    if kind == "Linear4bit":
        return _nf4_weight(module)().float()
    if kind == "Linear8bitLt":
        codes, scales = _int8_weight(module)
        return codes.float() * (scales.float()[:, None] / 127.0)
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    return (weight.T if is_transposed(module) else weight).float()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`functional.linear`, in blocks of ROW_BLOCK rows when float32 on the CPU."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return functional.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    short = -rows.shape[0] % ROW_BLOCK
    if short:
        rows = functional.pad(rows, (0, 0, 0, short))
    blocks = [functional.linear(block, weight, bias) for block in rows.split(ROW_BLOCK)]
    whole = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    return whole[: whole.shape[0] - short].view(*x.shape[:-1], -1)


def _nf4_product(module: nn.Module) -> Product:
    """bitsandbytes NF4 (arXiv 2305.14314), dequantized to the activations' dtype on each call."""
    bias: Any = module.bias
    weight = _nf4_weight(module)
    return lambda x: linear(x, weight().to(x.dtype), None if bias is None else bias.to(x.dtype))


def _nf4_weight(module: nn.Module) -> Callable[[], torch.Tensor]:
    """A function that dequantizes a bitsandbytes 4-bit layer.

    Blocks of 64 values run through the whole weight, row after row, and bitsandbytes' CPU kernel (0.50.2) loses count
    where a row is not a multiple of a block; so the weight is reshaped to one block a row.
    """
    import bitsandbytes.functional as bnb

    layer: Any = module
    shape, state, codes = layer.weight.quant_state.shape, copy(layer.weight.quant_state), layer.weight.data.view(-1, 1)
    if shape.numel() % state.blocksize == 0:
        state.shape = torch.Size((shape.numel() // state.blocksize, state.blocksize))
    return lambda: bnb.dequantize_4bit(codes, state).view(shape)


def _int8_weight(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Row-wise int8 codes [out, in] and absolute maxima [out] of a bitsandbytes 8-bit layer."""
    layer: Any = module
    if layer.weight.CB is not None:
        layer.init_8bit_state()
    return layer.state.CB, layer.state.SCB


def _int8_product(module: nn.Module) -> Product:
    """bitsandbytes' row-wise int8 weights, dequantized on each call; activations stay as they are.

    Quantizing activations as LLM.int8 (arXiv 2208.07339) does would need its outlier columns, whose choice depends on
    the other rows of the batch.
    """
    codes, maxima = _int8_weight(module)
    scales = maxima.float()[:, None] / 127.0
    bias: Any = module.bias

    def product(x: torch.Tensor) -> torch.Tensor:
        weight = codes.to(x.dtype) * scales.to(x.dtype)
        return linear(x, weight, None if bias is None else bias.to(x.dtype))

    return product
