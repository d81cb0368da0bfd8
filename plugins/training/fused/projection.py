"""Owns the frozen linear layers of a decoder that read the same values, and the low-rank pairs on them, as PEFT holds them.

The pairs' first halves are stacked, so that they are one product. Refuses every variant of a layer that it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tunery.plugins.training.fused.products import Packed, product

__all__ = ["Pairs", "Projection", "Readers", "projection_of"]

Tensor = torch.Tensor


class Projection:
    """y = x W' + bias, and the pair's weights where there is one: `a` [r, in], `b` [out, r], and its factor (arXiv 2106.09685)."""

    def __init__(self, layer: Any, a: Tensor | None = None, b: Tensor | None = None, scale: float = 1.0) -> None:
        self._layer, self.a, self.b, self.scale = layer, a, b, scale

    def weight(self, dtype: torch.dtype) -> Tensor | Packed:
        """W [out, in], as it is where it can be multiplied so."""
        weight: Tensor = self._layer.weight
        if hasattr(weight, "quant_state"):
            packed = Packed(weight)
            if packed.dtype == dtype:
                return packed
            weight = packed.whole()
        return weight if weight.dtype == dtype else weight.to(dtype)

    @property
    def bias(self) -> Tensor | None:
        """[out], or None."""
        found: Tensor | None = self._layer.bias
        return found


class Pairs:
    """The pairs of some projections in the dtype of the computation: `a` [R, in] is all their first halves, one below the other.

    Of each projection `b` [out, r], times the pair's factor, and the columns of R that are its own; None where it has no pair.
    """

    def __init__(self, projections: Sequence[Projection], dtype: torch.dtype) -> None:
        self.a: Tensor | None = None
        self.b: list[Tensor | None] = []
        self.columns: list[slice] = []
        halves, start = [], 0
        for projection in projections:
            rank = 0 if projection.a is None else len(projection.a)
            self.columns.append(slice(start, start + rank))
            self.b.append(None if projection.b is None else (projection.b * projection.scale).to(dtype))
            halves += [] if projection.a is None else [projection.a]
            start += rank
        self.rank = start
        if halves:
            self.a = torch.cat(halves).to(dtype)


class Readers:
    """Projections of the same values."""

    def __init__(self, projections: Sequence[Projection]) -> None:
        self.projections = tuple(projections)

    @property
    def trained(self) -> list[Tensor | None]:
        """Both halves of each pair, in turn; None twice where there is none."""
        return [half for projection in self.projections for half in (projection.a, projection.b)]

    def forward(self, x: Tensor, pairs: Pairs, onto: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """The outputs for `x` [T, in], the pairs' share in them, added to `onto`; and the pairs' inner values [T, R]."""
        inner = x.new_empty(len(x), 0) if pairs.a is None else product([(x, pairs.a.T)])
        outputs = []
        for projection, b, columns in zip(self.projections, pairs.b, pairs.columns, strict=True):
            terms = [(x, projection.weight(x.dtype).T), *([] if b is None else [(inner[:, columns], b.T)])]
            y = product(terms, onto)
            outputs.append(y if projection.bias is None else y.add_(projection.bias))
        return outputs, inner

    def backward(self, slopes: Sequence[Tensor], pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The gradients by x [T, in] and by the inner values [T, R], where `slopes` are those by the outputs."""
        by_inner = slopes[0].new_empty(len(slopes[0]), pairs.rank)
        for slope, b, columns in zip(slopes, pairs.b, pairs.columns, strict=True):
            if b is not None:
                product([(slope, b)], out=by_inner[:, columns])
        terms = [(slope, each.weight(slope.dtype)) for slope, each in zip(slopes, self.projections, strict=True)]
        return product([*terms, *([] if pairs.a is None else [(by_inner, pairs.a)])]), by_inner

    def gradients(
        self, slopes: Sequence[Tensor], x: Tensor, inner: Tensor, by_inner: Tensor, pairs: Pairs
    ) -> list[Tensor | None]:
        """Those by `trained`, float32, in its order."""
        if pairs.a is None:
            return [None] * (2 * len(self.projections))
        by_a = (by_inner.T @ x).float()
        found: list[Tensor | None] = []
        for slope, projection, b, columns in zip(slopes, self.projections, pairs.b, pairs.columns, strict=True):
            if b is None:
                found += [None, None]
            else:
                found += [by_a[columns], (slope.T @ inner[:, columns]).float().mul_(projection.scale)]
        return found


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
    """Whether a layer is torch's linear one or bitsandbytes' in four bits, and nothing of it is trained."""
    bits = type(layer).__name__ == "Linear4bit" and type(layer).__module__.startswith("bitsandbytes")
    known = type(layer) is nn.Linear or bits
    return known and not layer._forward_hooks and all(not parameter.requires_grad for parameter in layer.parameters())
