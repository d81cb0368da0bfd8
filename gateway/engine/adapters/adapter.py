"""Adapters in memory: the low-rank pairs, whole parameters and token rows of a version, keyed by module of the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from tunery.gateway.engine.composition import AdapterSource
from tunery.registry.errors import ArtifactRefused

__all__ = [
    "AdapterShape",
    "LoadedAdapter",
    "LowRank",
    "TokenRows",
    "dora_gain",
]


@dataclass(frozen=True, slots=True)
class LowRank:
    """A low-rank pair of one module: ΔW = scale · b a, with `a` [r, in], `b` [out, r], and `bias` [out] beside it.

    `gain`, float32 [out], is DoRA's magnitude over the norm of the merged weight (as read: the magnitude alone), or
    None. For an embedding `in` is the vocabulary and `out` the hidden size.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float = 1.0
    bias: torch.Tensor | None = None
    gain: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Memory of its tensors."""
        return sum(t.nbytes for t in (self.a, self.b, self.bias, self.gain) if t is not None)


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of an embedding or head that were trained: `values` [n, hidden] take the place of rows `ids`, int64 [n]."""

    ids: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True)
class LoadedAdapter:
    """An adapter in memory, ready to be applied: everything is keyed by the module's name in the base.

    `replaced` holds whole parameters (`weight`, `bias`) by module that take the place of the base's; `rows` holds
    single rows.
    """

    source: AdapterSource
    low_rank: dict[str, LowRank] = field(default_factory=dict)
    replaced: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    rows: dict[str, TokenRows] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Memory of all tensors in bytes, at their true rank; a tensor that two modules share counts once."""
        whole = {id(t): t.nbytes for tensors in self.replaced.values() for t in tensors.values()}
        single = {id(rows): rows.ids.nbytes + rows.values.nbytes for rows in self.rows.values()}
        return sum(whole.values()) + sum(single.values()) + sum(pair.bytes for pair in self.low_rank.values())

    def to(self, device: torch.device) -> LoadedAdapter:
        """A copy on `device`."""
        moved = LoadedAdapter(self.source)
        for name, pair in self.low_rank.items():
            tensors = (None if t is None else t.to(device) for t in (pair.a, pair.b, pair.bias, pair.gain))
            a, b, bias, gain = tensors
            if a is not None and b is not None:
                moved.low_rank[name] = LowRank(a, b, pair.scale, bias, gain)
        seen: dict[int, torch.Tensor] = {}
        for name, whole in self.replaced.items():
            moved.replaced[name] = {leaf: seen.setdefault(id(t), t.to(device)) for leaf, t in whole.items()}
        for name, rows in self.rows.items():
            moved.rows[name] = TokenRows(rows.ids.to(device), rows.values.to(device))
        return moved

    @property
    def plain(self) -> bool:
        """Whether it is low-rank products and nothing else, so that it can be weighted and added to others."""
        return (
            not self.replaced
            and not self.rows
            and all(p.gain is None and p.bias is None for p in self.low_rank.values())
        )


def dora_gain(source: AdapterSource, module: str, pair: LowRank, weight: torch.Tensor) -> torch.Tensor:
    """DoRA's factor per output row, magnitude / ‖W + BA‖ (arXiv 2402.09353, equation 5): float32 [out]; `weight` is W.

    Raise ArtifactRefused (artifact_nonfinite) when the norm overflows, which would turn the layer's output to zeros.
    """
    if pair.gain is None:
        raise ValueError("not a DoRA pair")
    merged = weight.to(pair.b.device) + pair.scale * (pair.b.float() @ pair.a.float())
    norm: torch.Tensor = torch.linalg.vector_norm(merged, dim=1)
    if not norm.isfinite().all():
        raise ArtifactRefused(
            f"{source.title}: the merged weight of {module} is not finite, as its pair or its alpha is too large; "
            "train it again",
            code="artifact_nonfinite",
        )
    return pair.gain / norm


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """What an adapter must fit: the parameter shapes of the base's modules, and whether the head is tied.

    `parameters` maps a module name to {"weight": shape, "bias": shape}; `tied` says that the output head shares the
    embedding's weight. `transposed` modules keep their weight as [in, out]; `fixed` ones (experts, routers) take no
    adapter.
    """

    parameters: Mapping[str, Mapping[str, tuple[int, ...]]]
    embedding: str
    head: str
    tied: bool
    transposed: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
