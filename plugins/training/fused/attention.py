"""Owns causal attention of rows that lie end to end, forward and backward: each token sees its own row up to itself, wherever that lies.

Natively where that fits, otherwise by two batched products a row. Shares are kept for the backward pass; rows that see more than LONG
tokens take torch's own attention, which keeps none and computes them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional

from tunery.plugins.training.fused.kernels import Kernels, RowsTable, native
from tunery.plugins.training.fused.layout import Layout
from tunery.plugins.training.fused.operations import softmax, softmax_backward

__all__ = ["attend", "attend_backward", "attend_differentiably"]

Tensor = torch.Tensor

PADDED = 32
"""What the native kernels pad rows of shares to, and what the size of a head must be a multiple of."""

LONG = 1024
"""Tokens that a row sees above which a square of shares is too much to keep."""


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> tuple[Tensor, list[Tensor]]:
    """What heads see: `q` [T, heads, d] with `k` and `v` [T, groups, d] to [T, heads, d]; and each row's shares, empty for long rows.

    Computed natively, the shares of all rows are one tensor.
    """
    out, shares = torch.empty_like(q), []
    if (kernels := _native(q, k, v, layout)) is not None:
        table = _table(layout, q.shape[1], k.shape[1], q.shape[2])
        shares.append(q.new_empty(table.shares))
        kernels.call("attend", q, k, v, out, shares[0], table.rows, scale)
        return out, shares
    for row, seen in zip(layout.rows, layout.seen, strict=True):
        if len(seen) > LONG:
            out[row] = _long(q[row], k[seen], v[seen], scale)
            shares.append(q.new_empty(0))
            continue
        queries, keys, values = _grouped(q[row], k.shape[1]), _heads_first(k[seen]), _heads_first(v[seen])
        shares.append(softmax(queries @ keys.transpose(1, 2), scale, len(seen) - (row.stop - row.start)))
        _ungroup(shares[-1] @ values, out[row])
    return out, shares


def attend_backward(
    slope: Tensor, q: Tensor, k: Tensor, v: Tensor, shares: Sequence[Tensor], layout: Layout, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by q, k and v where `slope` [T, heads, d] is that by the output; what several rows see is summed in float32."""
    groups, by_q, slope = k.shape[1], torch.empty_like(q), slope.contiguous()
    if (kernels := _native(q, k, v, layout)) is not None:
        by_k, by_v = torch.empty_like(k), torch.empty_like(v)
        table = _table(layout, q.shape[1], groups, q.shape[2])
        kernels.call("attend_backward", slope, q, k, v, shares[0], by_q, by_k, by_v, table.rows, scale)
        return by_q, by_k, by_v
    by_k, by_v = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (k, v))
    for row, seen, kept in zip(layout.rows, layout.seen, shares, strict=True):
        if len(seen) > LONG:
            by_q[row], of_keys, of_values = _long_backward(slope[row], q[row], k[seen], v[seen], scale)
        else:
            queries, keys, values = _grouped(q[row], groups), _heads_first(k[seen]), _heads_first(v[seen])
            slopes = _grouped(slope[row], groups)
            scores = softmax_backward(kept, slopes @ values.transpose(1, 2), scale)
            _ungroup(scores @ keys, by_q[row])
            of_keys, of_values = (
                (found.transpose(1, 2) @ given).transpose(0, 1) for found, given in ((scores, queries), (kept, slopes))
            )
        # A row sees no token twice, so this is the same sum every time.
        by_k[seen] += of_keys.float()
        by_v[seen] += of_values.float()
    return by_q, by_k.to(k.dtype), by_v.to(v.dtype)


def attend_differentiably(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    """`attend`, for autograd."""
    out: Tensor = _Attention.apply(q, k, v, layout, scale)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            out, shares = attend(q, k, v, layout, scale)
        ctx.save_for_backward(q, k, v, *shares)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *shares = ctx.saved_tensors
        return *attend_backward(slopes[0], q, k, v, shares, ctx.layout, ctx.scale), None, None


class _Table:
    """How rows lie, for the native kernels; `shares` is how many they have in all."""

    def __init__(self, layout: Layout, heads: int, groups: int, size: int) -> None:
        counts = [len(seen) for seen in layout.seen]
        padded = [-(-count // PADDED) * PADDED for count in counts]
        sizes = [heads * length * wide for length, wide in zip(layout.lengths, padded, strict=True)]
        starts = [row.start for row in layout.rows]
        first, places = accumulate(counts, initial=0), accumulate(sizes, initial=0)
        columns = [torch.tensor(list(column)) for column in (starts, layout.lengths, counts, first)]
        # Kept beside the addresses, which do not keep them.
        self._columns = [*columns, torch.cat(layout.seen), torch.tensor(list(places))]
        addresses = [column.data_ptr() for column in self._columns]
        self.rows = RowsTable(*addresses, len(counts), sum(layout.lengths), heads, groups, size)
        self.shares = sum(sizes)


_table = lru_cache(maxsize=4)(_Table)
"""Made once for all layers, forward and backward."""


def _native(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Kernels | None:
    return native(q, k, v) if q.shape[2] % PADDED == 0 and layout.longest <= LONG else None


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
    before, mask = len(k) - len(q), None
    if before:
        mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(before)
    seen = functional.scaled_dot_product_attention(
        queries, keys, values, mask, is_causal=not before, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return seen[0].transpose(0, 1)


def _long_backward(slope: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        q, k, v = (tensor.detach().requires_grad_() for tensor in (q, k, v))
        return torch.autograd.grad(_long(q, k, v, scale), (q, k, v), slope)
