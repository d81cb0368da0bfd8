"""An adapter as the native decoder applies it: a LoRA table for the kernels, and the parameters that it replaces.

All low-rank pairs lie in one buffer at their true rank. What the kernels do not apply by themselves (whole modules,
norms, embeddings, token rows) is kept beside the table; adapted.py applies it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from tunery.gateway.engine.adapters.adapter import LoadedAdapter, LowRank, TokenRows
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.models.native.kernels import LoraStruct
from tunery.gateway.engine.models.native.weight_layout import (
    PackedWeight,
    allocate_zeros,
    pack_dense,
    pack_lora,
    pad_to_panels,
)

__all__ = ["NativeAdapter", "Targets", "build_adapter"]


@dataclass(frozen=True, slots=True)
class Targets:
    """What an adapter of a base may change: `linear` layers in the decoder's order, the `embedding` and `norms`.

    `biases` [n] are those of the base's linear layers.

    `dtype` is that of activations and of low-rank pairs.
    """

    linear: Sequence[str]
    biases: Mapping[str, torch.Tensor]
    embedding: str
    norms: frozenset[str]
    dtype: torch.dtype


@dataclass(slots=True)
class NativeAdapter:
    """An adapter ready for the decoder.

    `lora_table` has a LoraStruct for each of the decoder's linear layers in its order and points into `buffers`;
    `max_rank` is its largest rank. `modules` are linear layers in the base's place, by index; `norms` are gains float32
    by module name; `embedding` [vocabulary, hidden] and `embedding_lora` change the embedding, `token_rows` single rows
    of it or of the head.
    """

    source: AdapterSource
    lora_table: ctypes.Array[LoraStruct]
    plain: bool
    buffers: list[torch.Tensor] = field(default_factory=list)
    max_rank: int = 0
    modules: dict[int, PackedWeight] = field(default_factory=dict)
    norms: dict[str, torch.Tensor] = field(default_factory=dict)
    embedding: torch.Tensor | None = None
    embedding_lora: LowRank | None = None
    token_rows: dict[str, TokenRows] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Memory of all its tensors and its table, at their true rank."""
        tensors = {id(t): t.nbytes for t in self.buffers}
        tensors |= {id(t): t.nbytes for t in self.norms.values()}
        tensors |= {id(rows): rows.ids.nbytes + rows.values.nbytes for rows in self.token_rows.values()}
        if self.embedding is not None:
            tensors[id(self.embedding)] = self.embedding.nbytes
        pair = self.embedding_lora.bytes if self.embedding_lora else 0
        modules = sum(weight.bytes for weight in self.modules.values())
        return ctypes.sizeof(self.lora_table) + sum(tensors.values()) + modules + pair

    @property
    def has_overrides(self) -> bool:
        """Whether it changes more than the kernels apply by themselves."""
        return bool(self.modules or self.norms or self.token_rows or self.embedding is not None or self.embedding_lora)


def build_adapter(loaded: LoadedAdapter, targets: Targets) -> NativeAdapter:
    """Bring what was read from the adapter's files into the decoder's form; its names are known to fit the base."""
    adapter = NativeAdapter(loaded.source, (LoraStruct * len(targets.linear))(), loaded.plain)
    adapter.embedding_lora = loaded.low_rank.get(targets.embedding)
    adapter.token_rows = dict(loaded.rows)
    _add_pairs(adapter, loaded, targets)
    for index, name in enumerate(targets.linear):
        _add_parameters(
            adapter, index, loaded.replaced.get(name, {}), targets.biases.get(name), loaded.low_rank.get(name)
        )
    for name, tensors in loaded.replaced.items():
        if name == targets.embedding:
            adapter.embedding = tensors["weight"]
        elif name in targets.norms:
            adapter.norms[name] = tensors["weight"].float()
    return adapter


def _add_pairs(adapter: NativeAdapter, loaded: LoadedAdapter, targets: Targets) -> None:
    """Put all low-rank pairs into one buffer and point the table at them."""
    pairs = [(index, loaded.low_rank[name]) for index, name in enumerate(targets.linear) if name in loaded.low_rank]
    parts = [(index, pair, *pack_lora(pair.a, pair.b)) for index, pair in pairs]
    buffer = allocate_zeros(sum(a.numel() + b.numel() for _, _, a, b in parts), targets.dtype, huge=True)
    at = 0
    for index, pair, a, b in parts:
        struct = adapter.lora_table[index]
        for name, part in (("a", a), ("b", b)):
            buffer[at : at + part.numel()] = part.view(-1)
            setattr(struct, name, buffer.data_ptr() + at * buffer.element_size())
            at += part.numel()
        struct.rank, struct.k, struct.scale = a.shape[0], a.shape[1], pair.scale
        adapter.max_rank = max(adapter.max_rank, a.shape[0])
        if pair.gain is not None:
            struct.gain = _keep(adapter, pad_to_panels(pair.gain.float()))
    adapter.buffers.append(buffer)


def _add_parameters(
    adapter: NativeAdapter,
    index: int,
    replaced: Mapping[str, torch.Tensor],
    base_bias: torch.Tensor | None,
    pair: LowRank | None,
) -> None:
    """Add a linear layer's own weight, and what is added after the products: its bias and that of its LoRA pair."""
    if "weight" in replaced:
        adapter.modules[index] = pack_dense(replaced["weight"])
    bias = replaced.get("bias", base_bias)
    pair_bias = pair.bias.float() * pair.scale if pair is not None and pair.bias is not None else None
    if pair_bias is not None and pair is not None and pair.gain is not None:
        pair_bias = pair_bias * pair.gain
    # The base's own bias is added by the kernels, except where a gain, a weight or another bias changes the rows.
    changed = replaced or pair_bias is not None or (pair is not None and pair.gain is not None)
    if not changed or (bias is None and pair_bias is None):
        return
    shift = (bias.float() if bias is not None else 0) + (pair_bias if pair_bias is not None else 0)
    adapter.lora_table[index].shift = _keep(adapter, pad_to_panels(torch.as_tensor(shift)))


def _keep(adapter: NativeAdapter, tensor: torch.Tensor) -> int:
    """The address of a tensor that lives as long as the adapter."""
    adapter.buffers.append(tensor.contiguous())
    return adapter.buffers[-1].data_ptr()
