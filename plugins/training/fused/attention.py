"""Owns causal attention of rows that lie end to end, forward and backward: each row attends to itself alone.

Natively where that fits, otherwise by two batched products a row. Shares are kept for the backward pass; rows longer than LONG take
torch's own attention, which keeps none and computes them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional

from tunery.plugins.training.fused.kernels import Kernels, RowsTable, native
from tunery.plugins.training.fused.operations import softmax, softmax_backward

__all__ = ["attend", "attend_backward", "attend_differentiably"]

Tensor = torch.Tensor

PADDED = 32
"""What the native kernels pad rows of shares to, and what the size of a head must be a multiple of."""

LONG = 1024
"""Tokens of a row above which a square of shares is too much to keep."""


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float) -> tuple[Tensor, list[Tensor]]:
    """What heads see: `q` [T, heads, d] with `k` and `v` [T, groups, d] to [T, heads, d]; and each row's shares, empty for long rows.

    Computed natively, the shares of all rows are one tensor.
    """
    out, shares = torch.empty_like(q), []
    if (kernels := _native(q, k, v, lengths)) is not None:
        table = _table(tuple(lengths), q.shape[1], k.shape[1], q.shape[2])
        shares.append(q.new_empty(table.shares))
        kernels.call("attend", q, k, v, out, shares[0], table.rows, scale)
        return out, shares
    for row, length in _rows(lengths):
        if length > LONG:
            out[row] = _long(q[row], k[row], v[row], scale)
            shares.append(q.new_empty(0))
            continue
        queries, keys, values = _grouped(q[row], k.shape[1]), _heads_first(k[row]), _heads_first(v[row])
        shares.append(softmax(queries @ keys.transpose(1, 2), scale))
        _ungroup(shares[-1] @ values, out[row])
    return out, shares


def attend_backward(
    slope: Tensor, q: Tensor, k: Tensor, v: Tensor, shares: Sequence[Tensor], lengths: Sequence[int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by q, k and v where `slope` [T, heads, d] is that by the output."""
    by_q, by_k, by_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    groups, slope = k.shape[1], slope.contiguous()
    if (kernels := _native(q, k, v, lengths)) is not None:
        table = _table(tuple(lengths), q.shape[1], k.shape[1], q.shape[2])
        kernels.call("attend_backward", slope, q, k, v, shares[0], by_q, by_k, by_v, table.rows, scale)
        return by_q, by_k, by_v
    for (row, length), kept in zip(_rows(lengths), shares, strict=True):
        if length > LONG:
            by_q[row], by_k[row], by_v[row] = _long_backward(slope[row], q[row], k[row], v[row], scale)
            continue
        queries, keys, values = _grouped(q[row], groups), _heads_first(k[row]), _heads_first(v[row])
        slopes = _grouped(slope[row], groups)
        by_v[row] = (kept.transpose(1, 2) @ slopes).transpose(0, 1)
        scores = softmax_backward(kept, slopes @ values.transpose(1, 2), scale)
        by_k[row] = (scores.transpose(1, 2) @ queries).transpose(0, 1)
        _ungroup(scores @ keys, by_q[row])
    return by_q, by_k, by_v


def attend_differentiably(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
    """`attend`, for autograd."""
    out: Tensor = _Attention.apply(q, k, v, lengths, scale)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            out, shares = attend(q, k, v, lengths, scale)
        ctx.save_for_backward(q, k, v, *shares)
        ctx.lengths, ctx.scale = lengths, scale
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *shares = ctx.saved_tensors
        return *attend_backward(slopes[0], q, k, v, shares, ctx.lengths, ctx.scale), None, None


class _Table:
    """How rows lie, for the native kernels; `shares` is how many they have in all."""

    def __init__(self, lengths: tuple[int, ...], heads: int, groups: int, size: int) -> None:
        padded = [-(-length // PADDED) * PADDED for length in lengths]
        sizes = [heads * length * wide for length, wide in zip(lengths, padded, strict=True)]
        columns = (accumulate(lengths, initial=0), lengths, padded, accumulate(sizes, initial=0))
        # Kept beside the addresses, which do not keep them.
        self._columns = [torch.tensor(list(column)) for column in columns]
        addresses = [column.data_ptr() for column in self._columns]
        self.rows = RowsTable(*addresses, len(lengths), heads, groups, size)
        self.shares = sum(sizes)


_table = lru_cache(maxsize=4)(_Table)
"""Made once for all layers, forward and backward."""


def _native(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Kernels | None:
    return native(q, k, v) if q.shape[2] % PADDED == 0 and max(lengths) <= LONG else None


def _rows(lengths: Sequence[int]) -> list[tuple[slice, int]]:
    rows, start = [], 0
    for length in lengths:
        rows.append((slice(start, start + length), length))
        start += length
    return rows


def _heads_first(x: Tensor) -> Tensor:
    """[L, groups, d] as [groups, L, d]."""
    return x.transpose(0, 1).contiguous()


def _grouped(x: Tensor, groups: int) -> Tensor:
    """The heads [L, heads, d] that share a group one below the other: [groups, heads / groups x L, d]."""
    length, heads, size = x.shape
    return x.view(length, groups, heads // groups, size).permute(1, 2, 0, 3).reshape(groups, -1, size)


def _ungroup(x: Tensor, out: Tensor) -> None:
    """Undo `_grouped` into `out`."""
    length, heads, size = out.shape
    groups = len(x)
    out.view(length, groups, heads // groups, size).copy_(x.view(groups, -1, length, size).permute(2, 0, 1, 3))


def _long(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    queries, keys, values = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    seen = functional.scaled_dot_product_attention(
        queries, keys, values, is_causal=True, scale=scale, enable_gqa=grouped
    )
    return seen[0].transpose(0, 1)


def _long_backward(slope: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        q, k, v = (tensor.detach().requires_grad_() for tensor in (q, k, v))
        return torch.autograd.grad(_long(q, k, v, scale), (q, k, v), slope)
