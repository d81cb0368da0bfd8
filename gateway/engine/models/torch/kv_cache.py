"""The KV cache of a TorchModel; scheduling/page_allocator.py decides which sequence has which slots."""

from __future__ import annotations

import torch

__all__ = ["KVCache"]


class KVCache:
    """Keys and values of every layer, in slots; a slot holds one token.

    A layer's memory is allocated on its first write, because only the model knows its heads: two tensors
    [slots, kv heads, head size] in the model's dtype. They begin as zeros, so that unwritten slots never hold NaN.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store `keys` and `values` [n, kv heads, head size] at `slots` [n]."""
        if layer not in self._keys:
            self._keys[layer] = keys.new_zeros((self._slots, *keys.shape[1:]))
            self._values[layer] = values.new_zeros((self._slots, *values.shape[1:]))
        self._keys[layer].index_copy_(0, slots, keys)
        self._values[layer].index_copy_(0, slots, values)

    def read(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at `slots`, each [kv heads, n, head size]."""
        keys = self._keys[layer].index_select(0, slots).transpose(0, 1)
        values = self._values[layer].index_select(0, slots).transpose(0, 1)
        return keys, values
