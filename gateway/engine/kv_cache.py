"""Owns the paged memory of keys and values and which pages are free; refuses to know what the tokens are.

Pages of PAGE tokens, as in PagedAttention (arXiv 2309.06180). Page 0 is a scratch page for padding rows.
"""

from __future__ import annotations

import torch

__all__ = ["PAGE", "KVCache"]

PAGE = 16


class KVCache:
    """Keys and values of every layer, in slots; a slot holds one token.

    A layer's memory is laid out on its first write, because only the model knows its heads: two tensors
    [slots, kv heads, head size] in the model's dtype. The operating system backs them as they are touched.
    """

    def __init__(self, tokens: int, *, device: torch.device) -> None:
        pages = -(-tokens // PAGE)
        self._slots = (pages + 1) * PAGE
        self._free = list(range(pages, 0, -1))
        self._pages = pages
        self._device = device
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}

    @property
    def capacity(self) -> int:
        """Tokens that fit in all."""
        return self._pages * PAGE

    @property
    def used(self) -> float:
        """Share of the pages in use, 0 to 1."""
        return 1 - len(self._free) / self._pages

    def fits(self, tokens: int) -> bool:
        """Whether `allocate(tokens)` would succeed now."""
        return -(-tokens // PAGE) <= len(self._free)

    def allocate(self, tokens: int) -> torch.Tensor:
        """Take pages for `tokens` and return their slots, int64 [tokens rounded up to pages]; the caller asked `fits`."""
        pages = [self._free.pop() for _ in range(-(-tokens // PAGE))]
        starts = torch.tensor(pages, dtype=torch.int64, device=self._device) * PAGE
        return (starts[:, None] + torch.arange(PAGE, device=self._device)).flatten()

    def release(self, slots: torch.Tensor) -> None:
        """Give back what `allocate` returned."""
        self._free.extend(reversed((slots[::PAGE] // PAGE).tolist()))

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store `keys` and `values` [n, kv heads, head size] at `slots` [n]."""
        if layer not in self._keys:
            self._keys[layer] = keys.new_empty((self._slots, *keys.shape[1:]))
            self._values[layer] = values.new_empty((self._slots, *values.shape[1:]))
        self._keys[layer].index_copy_(0, slots, keys)
        self._values[layer].index_copy_(0, slots, values)

    def read(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at `slots`, each [kv heads, n, head size]."""
        keys = self._keys[layer].index_select(0, slots).transpose(0, 1)
        values = self._values[layer].index_select(0, slots).transpose(0, 1)
        return keys, values
