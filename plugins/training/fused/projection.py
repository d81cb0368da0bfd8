"""Owns one frozen linear layer of a decoder and the low-rank pair on it, as PEFT holds them; refuses every variant that it does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunery.plugins.quantization import unpacked

__all__ = ["Pair", "Projection", "projection_of"]

Tensor = torch.Tensor


class Pair:
    """A low-rank pair (arXiv 2106.09685) in the dtype of the computation: `a` [r, in], `b` [out, r], and its factor."""

    def __init__(self, a: Tensor, b: Tensor, scale: float) -> None:
        self.a, self.b, self.scale = a, b, scale


class Projection:
    """y = x W' + bias, and the pair's two weights where there is one."""

    def __init__(self, layer: Any, a: Tensor | None, b: Tensor | None, scale: float) -> None:
        self._layer, self.a, self.b, self._scale = layer, a, b, scale

    def pair(self, dtype: torch.dtype) -> Pair | None:
        """The pair, cast."""
        return None if self.a is None or self.b is None else Pair(self.a.to(dtype), self.b.to(dtype), self._scale)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """W [out, in], unpacked where it is kept in four bits."""
        weight: Tensor = self._layer.weight
        if hasattr(weight, "quant_state"):
            weight = unpacked(weight)
        return weight if weight.dtype == dtype else weight.to(dtype)

    def forward(self, x: Tensor, pair: Pair | None, onto: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The output for `x` [T, in], added to `onto` where it is given; and the pair's inner values [T, r]."""
        weight, bias = self.weight(x.dtype), self._layer.bias
        if bias is not None:
            y = torch.addmm(bias.to(x.dtype), x, weight.T)
            y = y if onto is None else y.add_(onto)
        else:
            y = x @ weight.T if onto is None else torch.addmm(onto, x, weight.T)
        if pair is None:
            return y, None
        inner = x @ pair.a.T
        return y.addmm_(inner, pair.b.T, alpha=pair.scale), inner

    def backward(self, slope: Tensor, pair: Pair | None, onto: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The gradient by x where `slope` [T, out] is that by y, added in place to `onto`; and that by the inner values [T, r]."""
        weight = self.weight(slope.dtype)
        by_x = slope @ weight if onto is None else onto.addmm_(slope, weight)
        if pair is None:
            return by_x, None
        by_inner = (slope @ pair.b).mul_(pair.scale)
        return by_x.addmm_(by_inner, pair.a), by_inner


def projection_of(module: Any) -> Projection | None:
    """A frozen linear layer, bare or under one plain LoRA adapter of PEFT; None for anything else."""
    if _frozen(module):
        return Projection(module, None, None, 1.0)
    if not hasattr(module, "lora_A") or not _frozen(module.base_layer) or module.merged or module._forward_hooks:
        return None
    if module.disable_adapters:
        return Projection(module.base_layer, None, None, 1.0)
    names = list(module.active_adapters)
    if len(names) != 1 or names[0] not in module.lora_A or names[0] in getattr(module, "lora_variant", {}):
        return None
    name = names[0]
    a, b = module.lora_A[name], module.lora_B[name]
    if not isinstance(module.lora_dropout[name], nn.Identity) or a.bias is not None or b.bias is not None:
        return None
    return Projection(module.base_layer, a.weight, b.weight, float(module.scaling[name]))


def _frozen(layer: Any) -> bool:
    """Whether a layer is torch's linear one or bitsandbytes' in four bits, and nothing of it is trained."""
    known = type(layer) is nn.Linear or (
        type(layer).__name__ == "Linear4bit" and type(layer).__module__.startswith("bitsandbytes")
    )
    return known and not layer._forward_hooks and all(not parameter.requires_grad for parameter in layer.parameters())
