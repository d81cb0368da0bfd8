"""Owns sums of products with weights as the model holds them, rounded once: natively where that is faster, otherwise one by one in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunery.plugins.training.fused.kernels import Kernels, Term, load_kernels

__all__ = ["product"]

Tensor = torch.Tensor
Terms = Sequence[tuple[Tensor, Tensor]]


def product(terms: Terms, onto: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """a1 @ b1 + a2 @ b2 + ..., where `terms` are pairs [T, k] and [k, n], plus `onto` [T, n]; in `out` [T, n] where it is given."""
    (a, b), *others = terms
    if (kernels := _native(terms, onto, out)) is not None:
        found = a.new_empty(len(a), b.shape[1]) if out is None else out
        stride = 0 if onto is None else onto.stride(0)
        kernels.call("product", _array(terms), len(terms), onto, stride, found, found.stride(0), *found.shape)
        return found
    found = torch.mm(a, b) if onto is None else torch.addmm(onto, a, b)
    for a, b in others:
        found.addmm_(a, b)
    return found if out is None else out.copy_(found)


def _native(terms: Terms, *others: Tensor | None) -> Kernels | None:
    """The kernels, if they are there and fit: bfloat16 on a CPU without tiles, elements of rows side by side, an even number to sum over."""
    rows = [*(a for a, _ in terms), *(x for x in others if x is not None)]
    weights = [b for _, b in terms]
    if any(x.dtype != torch.bfloat16 or x.stride(1) != 1 for x in rows) or rows[0].device.type != "cpu":
        return None
    if any(b.dtype != torch.bfloat16 or len(b) % 2 or 1 not in b.stride() for b in weights):
        return None
    kernels = load_kernels()
    return None if kernels is None or kernels.tiles else kernels


def _array(terms: Terms) -> object:
    """The terms as the kernels take them: whether the weight's columns lie in one piece, and the stride between its pieces."""
    array = (Term * len(terms))()
    for term, (a, b) in zip(array, terms, strict=True):
        turned = b.stride(1) != 1
        term.a, term.b, term.a_row, term.b_row = a.data_ptr(), b.data_ptr(), a.stride(0), b.stride(1 if turned else 0)
        term.depth, term.turned = len(b), turned
    return array
