"""The native kernels' linear layers called as the decoder calls them, and the same computed by torch in double
precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import bitsandbytes  # noqa: F401 - importing it takes seconds, which are no example's fault
import torch

from tunery.gateway.engine.adapters.adapter import LoadedAdapter, LowRank
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.models.native.adapter import NativeAdapter, Targets, build_adapter
from tunery.gateway.engine.models.native.batch_metadata import LoraSegments
from tunery.gateway.engine.models.native.kernels import Kernels
from tunery.gateway.engine.models.native.ops.linear import LinearGroup, Workspace, dequantize
from tunery.gateway.engine.models.native.ops.matrix import Matrix
from tunery.gateway.engine.models.native.weight_layout import PackedWeight, pack_dense, pack_int8, pack_nf4
from tunery.gateway.engine.scheduling.forward_batch import Segment

PACKERS = {"dense": pack_dense, "nf4": pack_nf4, "int8": pack_int8}
SUM_ERROR, INNER_ERROR = 3e-6, 2**-8
"""How far a float32 sum strays from the sum of magnitudes, and what narrowing the middle of a pair to bfloat16 costs.
"""


@dataclass
class Part:
    """Rows [start, end) run through an adapter: as it was read, and packed."""

    start: int
    end: int
    loaded: LoadedAdapter
    packed: NativeAdapter
    weight: float = 1.0

    def cut(self, start: int, end: int) -> Part | None:
        """The part of it in rows [start, end), counted from there; None when there is none."""
        low, high = max(self.start, start), min(self.end, end)
        return Part(low - start, high - start, self.loaded, self.packed, self.weight) if low < high else None


class NanWorkspace(Workspace):
    """Scratch memory in which nothing that was there before may matter."""

    def address(self, count: int) -> int:
        self.memory = torch.full((count + 1,), torch.nan)
        return self.memory.data_ptr()


@dataclass
class Layer:
    """Linear layers that share their input of `dtype`; targets are named by their numbers."""

    kernels: Kernels
    dtype: torch.dtype
    weights: list[PackedWeight]

    def part(self, start: int, end: int, loaded: LoadedAdapter, weight: float = 1.0) -> Part:
        """Pack an adapter for these layers."""
        own = [str(index) for index in range(len(self.weights))]
        biases = {str(i): w.bias[: w.n] for i, w in enumerate(self.weights) if w.bias is not None}
        # One target before these, and those of a layer that follows.
        targets = Targets(["before", *own, *own], biases, embedding="", norms=frozenset(), dtype=self.dtype)
        packed = build_adapter(loaded, targets)
        return Part(start, end, loaded, packed, weight)

    def __call__(self, x: torch.Tensor, parts: Sequence[Part] = ()) -> torch.Tensor:
        """What the kernels say, float32 [rows, n of all targets]."""
        segments = LoraSegments(tuple(Segment(part.start, part.end, part.packed, part.weight) for part in parts))
        targets, width = len(self.weights), sum(weight.width for weight in self.weights)
        group = LinearGroup(
            self.kernels, self.weights, self.dtype, workspace=NanWorkspace(), first=1, following=targets
        )
        y = torch.full((len(x), width), torch.nan)
        group(Matrix(x), Matrix(y), segments, rows=len(x))
        columns = y.split([weight.width for weight in self.weights], dim=1)
        return torch.cat([column[:, : w.n] for column, w in zip(columns, self.weights, strict=True)], dim=1)

    def expected(self, x: torch.Tensor, parts: Sequence[Part] = ()) -> tuple[torch.Tensor, torch.Tensor]:
        """What torch says in double precision, and how far rounding may lead away from it."""
        pairs = [self._target(str(index), weight, x.double(), parts) for index, weight in enumerate(self.weights)]
        values, errors = zip(*pairs, strict=True)
        return torch.cat(values, dim=1), torch.cat(errors, dim=1)

    def _target(
        self, name: str, weight: PackedWeight, x: torch.Tensor, parts: Sequence[Part]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values = dequantize(self.kernels, weight, self.dtype).double()
        y, error = x @ values.T, SUM_ERROR * (x.abs() @ values.abs().T)
        inner_error = SUM_ERROR if self.dtype == torch.float32 else INNER_ERROR
        shift = torch.zeros_like(y) if weight.bias is None else weight.bias[: weight.n].double().expand_as(y).clone()
        for part in parts:
            rows, pair = slice(part.start, part.end), part.loaded.low_rank.get(name)
            own = part.loaded.replaced.get(name, {}).get("bias")
            if own is not None:
                shift[rows] = own.double()
            if pair is None:
                continue
            a, b, scale = pair.a.double(), pair.b.double(), pair.scale * part.weight
            y[rows] += scale * (x[rows] @ a.T @ b.T)
            error[rows] += inner_error * abs(scale) * (x[rows].abs() @ a.abs().T @ b.abs().T)
            gain = torch.ones(weight.n) if pair.gain is None else pair.gain.double()
            y[rows], error[rows] = y[rows] * gain, error[rows] * gain.abs()
            if pair.bias is not None:
                shift[rows] += pair.bias.double() * pair.scale * gain
        return y + shift, error + SUM_ERROR * (shift.abs() + 1e-6)


def random_layer(
    kernels: Kernels, kind: str, dtype: torch.dtype, shapes: Sequence[int], k: int, *, seed: int, bias: bool = False
) -> Layer:
    """Random weights [n, k] for the n of `shapes`, packed as `kind`."""
    generator = torch.Generator().manual_seed(seed)
    packed = []
    for n in shapes:
        weight = torch.randn(n, k, generator=generator) / k**0.5
        own = torch.randn(n, generator=generator) if bias else None
        packed.append(PACKERS[kind](weight.to(dtype), own))
    return Layer(kernels, dtype, packed)


def random_adapter(
    layer: Layer, ranks: Sequence[int], *, seed: int, gain: bool = False, bias: bool = False, own: bool = False
) -> LoadedAdapter:
    """Random pairs of the given ranks by target (0: none), with DoRA gains, biases of their own, or trained biases."""
    generator = torch.Generator().manual_seed(seed)
    loaded = LoadedAdapter(AdapterSource(f"digest-{seed}", "acme/test", 1, {}))
    for index, (weight, rank) in enumerate(zip(layer.weights, ranks, strict=True)):
        n, k = weight.n, weight.k
        if own:
            loaded.replaced[str(index)] = {"bias": torch.randn(n, generator=generator)}
        if rank:
            a, b = torch.randn(rank, k, generator=generator) / k**0.5, torch.randn(n, rank, generator=generator)
            inner = torch.randn(n, generator=generator).to(layer.dtype) if bias else None
            factor = torch.rand(n, generator=generator) + 0.5 if gain else None
            loaded.low_rank[str(index)] = LowRank(a.to(layer.dtype), b.to(layer.dtype), 0.5, inner, factor)
    return loaded
