"""Owns an adapter as the native kernels read it: one table of corrections by layer and target; refuses nothing, being told what fits.

All low-rank pairs lie in one buffer at their true rank. What the kernels do not apply by themselves (whole layers, norms, embeddings,
token rows) is kept beside it for the decoder.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from tunery.gateway.engine.adapters.adapter import LoadedAdapter, LowRank, TokenRows
from tunery.gateway.engine.messages import AdapterSource
from tunery.gateway.engine.models.native.kernels import Correction
from tunery.gateway.engine.models.native.packing import Packed, dense, pack_pair, padded, zeros

__all__ = ["PackedAdapter", "pack_adapter"]


@dataclass(slots=True)
class PackedAdapter:
    """An adapter ready for the decoder.

    `table` has a Correction per target in the decoder's order and points into `tensors`; `ranks` is its largest rank. `whole` are
    linear layers in the base's place by target, `norms` float32 gains by module; `embedding` and `embedding_pair` change
    the embedding, `rows` single rows of it or of the head, by module.
    """

    source: AdapterSource
    table: ctypes.Array[Correction]
    tensors: list[torch.Tensor]
    ranks: int
    plain: bool
    whole: dict[int, Packed] = field(default_factory=dict)
    norms: dict[str, torch.Tensor] = field(default_factory=dict)
    embedding: torch.Tensor | None = None
    embedding_pair: LowRank | None = None
    rows: dict[str, TokenRows] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Memory of all its tensors and its table, at their true rank."""
        tensors = {id(t): t.nbytes for t in self.tensors}
        tensors |= {id(t): t.nbytes for t in self.norms.values()}
        tensors |= {id(rows): rows.ids.nbytes + rows.values.nbytes for rows in self.rows.values()}
        if self.embedding is not None:
            tensors[id(self.embedding)] = self.embedding.nbytes
        pair = self.embedding_pair.bytes if self.embedding_pair else 0
        whole = sum(packed.bytes for packed in self.whole.values())
        return ctypes.sizeof(self.table) + sum(tensors.values()) + whole + pair

    @property
    def special(self) -> bool:
        """Whether the decoder has anything to do that the kernels do not."""
        return bool(self.whole or self.norms or self.rows or self.embedding is not None or self.embedding_pair)


def pack_adapter(
    loaded: LoadedAdapter,
    targets: Sequence[str],
    *,
    biases: Mapping[str, torch.Tensor],
    embedding: str,
    norms: frozenset[str],
    dtype: torch.dtype,
) -> PackedAdapter:
    """Pack what was read for the modules `targets`, the decoder's linear layers in its order; `biases` are the base's own."""
    table = (Correction * len(targets))()
    packed = PackedAdapter(loaded.source, table, [], 0, loaded.plain)
    packed.embedding_pair = loaded.low_rank.get(embedding)
    packed.rows = dict(loaded.rows)
    _pack_pairs(packed, loaded, targets, dtype)
    for index, name in enumerate(targets):
        _pack_whole(packed, index, loaded.replaced.get(name, {}), biases.get(name), loaded.low_rank.get(name))
    for name, tensors in loaded.replaced.items():
        if name == embedding:
            packed.embedding = tensors["weight"]
        elif name in norms:
            packed.norms[name] = tensors["weight"].float()
    return packed


def _pack_pairs(packed: PackedAdapter, loaded: LoadedAdapter, targets: Sequence[str], dtype: torch.dtype) -> None:
    """Put all pairs into one buffer and point the table at them."""
    pairs = [(index, loaded.low_rank[name]) for index, name in enumerate(targets) if name in loaded.low_rank]
    parts = [(index, pair, *pack_pair(pair.a, pair.b)) for index, pair in pairs]
    buffer = zeros(sum(a.numel() + b.numel() for _, _, a, b in parts), dtype, huge=True)
    at = 0
    for index, pair, a, b in parts:
        for name, part in (("a", a), ("b", b)):
            buffer[at : at + part.numel()] = part.view(-1)
            setattr(packed.table[index], name, buffer.data_ptr() + at * buffer.element_size())
            at += part.numel()
        row = packed.table[index]
        row.rank, row.k, row.scale = a.shape[0], a.shape[1], pair.scale
        packed.ranks = max(packed.ranks, a.shape[0])
        if pair.gain is not None:
            packed.table[index].gain = _kept(packed, padded(pair.gain.float()))
    packed.tensors.append(buffer)


def _pack_whole(
    packed: PackedAdapter,
    index: int,
    tensors: Mapping[str, torch.Tensor],
    bias: torch.Tensor | None,
    pair: LowRank | None,
) -> None:
    """A target's own weight, and everything that is added after the products: bias, trained or the base's, and the pair's."""
    if "weight" in tensors:
        packed.whole[index] = dense(tensors["weight"])
    own = tensors.get("bias", bias)
    inner = pair.bias.float() * pair.scale if pair is not None and pair.bias is not None else None
    gained = pair is not None and pair.gain is not None
    if inner is not None and pair is not None and pair.gain is not None:
        inner = inner * pair.gain
    if own is None and inner is None:
        return
    if "bias" not in tensors and inner is None and not gained and "weight" not in tensors:
        return
    shift = (own.float() if own is not None else 0) + (inner if inner is not None else 0)
    packed.table[index].shift = _kept(packed, padded(torch.as_tensor(shift)))


def _kept(packed: PackedAdapter, tensor: torch.Tensor) -> int:
    """The address of a tensor that lives as long as the adapter."""
    packed.tensors.append(tensor.contiguous())
    return packed.tensors[-1].data_ptr()
