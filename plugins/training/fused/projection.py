"""Frozen linear layers of a decoder that read the same input, with PEFT's LoRA pairs on them, forward and backward.

The pairs' A matrices are stacked, so that they take one product. `projection_of` accepts only plain layers and plain
LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tunery.plugins.training.fused.matmul import matmul_sum
from tunery.plugins.training.fused.quantized_weight import QuantizedWeight

__all__ = ["LinearGroup", "LoraPairs", "Projection", "projection_of"]

Tensor = torch.Tensor


class Projection:
    """y = x W^T + bias + scale (x A^T) B^T (arXiv 2106.09685), with `a` [r, in], `b` [out, r] or
    without a LoRA pair."""

    def __init__(self, layer: Any, a: Tensor | None = None, b: Tensor | None = None, scale: float = 1.0) -> None:
        self._layer, self.a, self.b, self.scale = layer, a, b, scale

    def weight(self, dtype: torch.dtype) -> Tensor | QuantizedWeight:
        """W [out, in] in `dtype`, without dequantizing it where products can read it as it is."""
        weight: Tensor = self._layer.weight
        if hasattr(weight, "quant_state"):
            quantized = QuantizedWeight(weight)
            if quantized.dtype == dtype:
                return quantized
            weight = quantized.dequantize()
        return weight if weight.dtype == dtype else weight.to(dtype)

    @property
    def bias(self) -> Tensor | None:
        """[out], or None."""
        bias: Tensor | None = self._layer.bias
        return bias


class LoraPairs:
    """The LoRA pairs of some projections in the dtype of the computation; `a` [R, in] has all their A, stacked.

    `b` has each projection's B [out, r] times its scale, and `columns` its part of R; None and empty without a pair.
    """

    def __init__(self, projections: Sequence[Projection], dtype: torch.dtype) -> None:
        self.a: Tensor | None = None
        self.b: list[Tensor | None] = []
        self.columns: list[slice] = []
        stacked, start = [], 0
        for projection in projections:
            rank = 0 if projection.a is None else len(projection.a)
            self.columns.append(slice(start, start + rank))
            self.b.append(None if projection.b is None else (projection.b * projection.scale).to(dtype))
            stacked += [] if projection.a is None else [projection.a]
            start += rank
        self.rank = start
        if stacked:
            self.a = torch.cat(stacked).to(dtype)


class LinearGroup:
    """Projections of the same input."""

    def __init__(self, projections: Sequence[Projection]) -> None:
        self.projections = tuple(projections)

    @property
    def trained(self) -> list[Tensor | None]:
        """A and B of each projection in turn; None twice without a pair."""
        return [half for projection in self.projections for half in (projection.a, projection.b)]

    def forward(self, x: Tensor, pairs: LoraPairs, onto: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """The outputs for `x` [T, in] with LoRA, added to `onto`; and x A^T [T, R] for the backward pass."""
        inner = x.new_empty(len(x), 0) if pairs.a is None else matmul_sum([(x, pairs.a.T)])
        outputs = []
        for projection, b, columns in zip(self.projections, pairs.b, pairs.columns, strict=True):
            terms = [(x, projection.weight(x.dtype).T), *([] if b is None else [(inner[:, columns], b.T)])]
            y = matmul_sum(terms, onto)
            outputs.append(y if projection.bias is None else y.add_(projection.bias))
        return outputs, inner

    def backward(self, grads: Sequence[Tensor], pairs: LoraPairs) -> tuple[Tensor, Tensor]:
        """The gradients by x [T, in] and by x A^T [T, R], where `grads` are those by the outputs."""
        grad_inner = grads[0].new_empty(len(grads[0]), pairs.rank)
        for grad, b, columns in zip(grads, pairs.b, pairs.columns, strict=True):
            if b is not None:
                matmul_sum([(grad, b)], out=grad_inner[:, columns])
        terms = [
            (grad, projection.weight(grad.dtype)) for grad, projection in zip(grads, self.projections, strict=True)
        ]
        return matmul_sum([*terms, *([] if pairs.a is None else [(grad_inner, pairs.a)])]), grad_inner

    def weight_gradients(
        self, grads: Sequence[Tensor], x: Tensor, inner: Tensor, grad_inner: Tensor, pairs: LoraPairs
    ) -> list[Tensor | None]:
        """The gradients by `trained`, float32, in its order."""
        if pairs.a is None:
            return [None] * (2 * len(self.projections))
        grad_a = (grad_inner.T @ x).float()
        gradients: list[Tensor | None] = []
        for grad, projection, b, columns in zip(grads, self.projections, pairs.b, pairs.columns, strict=True):
            if b is None:
                gradients += [None, None]
            else:
                gradients += [grad_a[columns], (grad.T @ inner[:, columns]).float().mul_(projection.scale)]
        return gradients


def projection_of(module: Any) -> Projection | None:
    """A frozen linear layer, bare or under one plain LoRA adapter of PEFT; None for anything else."""
    if _frozen(module):
        return Projection(module)
    if not hasattr(module, "lora_A") or not _frozen(module.base_layer) or module.merged or module._forward_hooks:
        return None
    if module.disable_adapters:
        return Projection(module.base_layer)
    names = list(module.active_adapters)
    if len(names) != 1 or names[0] not in module.lora_A or names[0] in getattr(module, "lora_variant", {}):
        return None
    name = names[0]
    a, b = module.lora_A[name], module.lora_B[name]
    if not isinstance(module.lora_dropout[name], nn.Identity) or a.bias is not None or b.bias is not None:
        return None
    return Projection(module.base_layer, a.weight, b.weight, float(module.scaling[name]))


def _frozen(layer: Any) -> bool:
    """Whether a layer is torch's Linear or bitsandbytes' Linear4bit, and nothing of it is trained."""
    quantized = type(layer).__name__ == "Linear4bit" and type(layer).__module__.startswith("bitsandbytes")
    known = type(layer) is nn.Linear or quantized
    return known and not layer._forward_hooks and all(not parameter.requires_grad for parameter in layer.parameters())
