"""Owns sums of products with weights as the model holds them, rounded once: natively where that is faster, otherwise one by one in torch."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof
from typing import Any

import torch

from tunery.plugins.quantization import NF4_BLOCK, dequantize_nf4
from tunery.plugins.training.fused.kernels import Kernels, PackedWeight, Term, load_kernels

__all__ = ["Packed", "product"]

Tensor = torch.Tensor


class Packed:
    """A weight [out, in] that bitsandbytes keeps in four bits, to be multiplied as it is; `T` is the same, turned round."""

    def __init__(self, weight: Any, *, turned: bool = False) -> None:
        self._weight, self.turned = weight, turned
        self.dtype: torch.dtype = weight.quant_state.dtype
        self.rows, self.width = weight.quant_state.shape

    @property
    def T(self) -> Packed:  # noqa: N802 - as of a tensor
        """[in, out]."""
        return Packed(self._weight, turned=not self.turned)

    @property
    def shape(self) -> tuple[int, int]:
        """As of the tensor."""
        return (self.width, self.rows) if self.turned else (self.rows, self.width)

    def whole(self) -> Tensor:
        """As a tensor."""
        weight = dequantize_nf4(self._weight)
        return weight.T if self.turned else weight

    @property
    def fits(self) -> bool:
        """Whether the kernels know how it is packed."""
        state = self._weight.quant_state
        known = state.quant_type == "nf4" and state.nested and state.blocksize == NF4_BLOCK
        return known and self.dtype == torch.bfloat16 and self.width % NF4_BLOCK == 0 and self.rows % 2 == 0

    def described(self) -> PackedWeight:
        """For the kernels."""
        state = self._weight.quant_state
        parts = (self._weight.data, state.absmax, state.code, state.state2.code, state.state2.absmax)
        return PackedWeight(*(part.data_ptr() for part in parts), float(state.offset), state.state2.blocksize)


Terms = Sequence[tuple[Tensor, Tensor | Packed]]


def product(terms: Terms, onto: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """a1 @ b1 + a2 @ b2 + ..., where `terms` are pairs [T, k] and [k, n], plus `onto` [T, n]; in `out` [T, n] where it is given."""
    terms = [(a, b.whole() if isinstance(b, Packed) and not b.fits else b) for a, b in terms]
    (a, b), *others = terms
    if (kernels := _native(terms, onto, out)) is not None:
        found = a.new_empty(len(a), b.shape[1]) if out is None else out
        stride = 0 if onto is None else onto.stride(0)
        packed = [each.described() if isinstance(each, Packed) else None for _, each in terms]
        array = _array(terms, packed)
        kernels.call("product", array, len(terms), onto, stride, found, found.stride(0), *found.shape)
        return found
    found = torch.mm(a, _whole(b)) if onto is None else torch.addmm(onto, a, _whole(b))
    for a, b in others:
        found.addmm_(a, _whole(b))
    return found if out is None else out.copy_(found)


def _whole(b: Tensor | Packed) -> Tensor:
    return b.whole() if isinstance(b, Packed) else b


def _native(terms: Terms, *others: Tensor | None) -> Kernels | None:
    """The kernels, if they are there and fit: bfloat16 on a CPU without tiles, elements of rows side by side, an even number to sum over."""
    rows = [*(a for a, _ in terms), *(x for x in others if x is not None)]
    if any(x.dtype != torch.bfloat16 or x.stride(1) != 1 for x in rows) or rows[0].device.type != "cpu":
        return None
    wholes = [b for _, b in terms if not isinstance(b, Packed)]
    if any(b.dtype != torch.bfloat16 or len(b) % 2 or 1 not in b.stride() for b in wholes):
        return None
    kernels = load_kernels()
    return None if kernels is None or kernels.tiles else kernels


def _array(terms: Terms, packed: Sequence[PackedWeight | None]) -> object:
    """The terms as the kernels take them: whether the weight's columns lie in one piece, and the stride between its pieces."""
    array = (Term * len(terms))()
    for term, (a, b), description in zip(array, terms, packed, strict=True):
        term.a, term.a_row, term.depth = a.data_ptr(), a.stride(0), b.shape[0]
        if isinstance(b, Packed):
            assert description is not None  # noqa: S101 - packed ones are described
            term.packed, term.b_row, term.turned = addressof(description), b.width, b.turned
        else:
            term.turned = b.stride(1) != 1
            term.b, term.b_row = b.data_ptr(), b.stride(1 if term.turned else 0)
    return array
