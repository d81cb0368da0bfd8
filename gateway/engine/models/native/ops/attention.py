"""Rotary positions, the paged KV cache, and attention over it (csrc/rope.c and csrc/attention.c)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tunery.gateway.engine.models.native.batch_metadata import BatchMetadata
from tunery.gateway.engine.models.native.kernels import Kernels
from tunery.gateway.engine.models.native.ops.matrix import Matrix, check_vector
from tunery.gateway.engine.models.native.weight_layout import allocate_zeros
from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE

__all__ = ["HeadLayout", "KVCache", "PagedAttention", "QKNorm", "RotaryEmbedding"]

QKNorm = tuple[torch.Tensor | None, torch.Tensor | None]
"""Gains float32 [size] of the norms of queries and keys before they are rotated (Qwen 3); None for no norm."""


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Query heads, key-value heads (grouped-query attention, arXiv 2305.13245), and the elements of a head."""

    heads: int
    kv_heads: int
    size: int

    @property
    def width(self) -> int:
        """Elements of all query heads of a token."""
        return self.heads * self.size


class KVCache:
    """One layer's keys [pages, kv heads, size / 2, PAGE_SIZE, 2] (float32: [pages, kv heads, size, PAGE_SIZE]) and
    values [pages, kv heads, PAGE_SIZE, size].

    The operating system backs the memory with zeros as it is touched.
    """

    def __init__(self, layout: HeadLayout, pages: int, dtype: torch.dtype) -> None:
        count = pages * PAGE_SIZE * layout.kv_heads * layout.size
        self.keys, self.values = allocate_zeros(count, dtype), allocate_zeros(count, dtype)
        self.dtype = dtype
        self.addresses = self.keys.data_ptr(), self.values.data_ptr()


class RotaryEmbedding:
    """Rotary positions (arXiv 2104.09864) from tables `cosine` and `sine`, float32 [positions, size / 2]."""

    def __init__(
        self, kernels: Kernels, layout: HeadLayout, cosine: torch.Tensor, sine: torch.Tensor, epsilon: float
    ) -> None:
        self._kernels, self._layout, self._epsilon = kernels, layout, epsilon
        half = layout.size // 2
        for table in (cosine, sine):
            if table.dtype is not torch.float32 or not table.is_contiguous() or table.shape[1:] != (half,):
                raise ValueError(
                    f"rotary tables must be contiguous float32 [positions, {half}], not {tuple(table.shape)}"
                )
        self._tables = cosine, sine
        self._addresses = cosine.data_ptr(), sine.data_ptr()

    def __call__(
        self,
        qkv: Matrix,
        columns: tuple[int, ...],
        q: Matrix,
        cache: KVCache,
        batch: BatchMetadata,
        *,
        norms: QKNorm = (None, None),
        rows: int,
        start: int = 0,
    ) -> None:
        """Norm and rotate queries to `q` and keys to the cache, and copy values there, for `rows` rows from `start`.

        `qkv` is float32 with queries, keys and values from `columns`; `q` [T, heads * size] has the cache's dtype.
        """
        layout = self._layout
        if q.dtype is not cache.dtype or q.stride != layout.width or qkv.dtype is not torch.float32:
            raise ValueError(
                f"queries must be contiguous {cache.dtype} [T, {layout.width}], not {q.dtype} {tuple(q.tensor.shape)}"
            )
        if min(qkv.rows, q.rows, batch.rows) < start + rows or qkv.columns < columns[2] + layout.kv_heads * layout.size:
            raise ValueError(f"{start + rows} rows of queries, keys and values do not fit {tuple(qkv.tensor.shape)}")
        q_norm, k_norm = (
            None if gain is None else check_vector("a head's norm", gain, layout.size).data_ptr() for gain in norms
        )
        self._kernels.rotate(
            qkv.address(start), qkv.stride, columns[1], columns[2], rows, layout.heads, layout.kv_heads, layout.size,
            q_norm, k_norm, self._epsilon, *self._addresses, batch.positions_address(start), batch.slots_address(start),
            q.address(start), *cache.addresses, q.wide,
        )  # fmt: skip


class PagedAttention:
    """Causal attention over a paged cache (arXiv 2309.06180), within a sliding window of `window` tokens or 0."""

    def __init__(self, kernels: Kernels, layout: HeadLayout, *, window: int) -> None:
        self._kernels, self._layout, self._window = kernels, layout, window

    def __call__(self, q: Matrix, cache: KVCache, out: Matrix, batch: BatchMetadata) -> None:
        """Attend from `q` to each sequence's cached tokens; `q` and `out` [T, heads * size] have the cache's dtype."""
        layout = self._layout
        if (
            q.dtype is not cache.dtype
            or out.dtype is not cache.dtype
            or q.stride != layout.width
            or out.stride != q.stride
        ):
            raise ValueError(f"queries and results must be contiguous {cache.dtype} [T, {layout.width}]")
        if min(q.rows, out.rows) < batch.rows:
            raise ValueError(f"attention of {batch.rows} rows needs as many, not {q.rows} and {out.rows}")
        self._kernels.attend(
            batch.spans, len(batch.spans), q.address(), *cache.addresses, layout.heads, layout.kv_heads, layout.size,
            layout.size**-0.5, self._window, out.address(), q.wide,
        )  # fmt: skip
