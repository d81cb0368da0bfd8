"""Linear layers on packed weights, with the LoRA deltas of every row's adapter (csrc/linear.c and csrc/lora.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tunery.gateway.engine.models.native.batch_metadata import LoraSegments
from tunery.gateway.engine.models.native.kernels import Kernels, WeightStruct
from tunery.gateway.engine.models.native.ops.matrix import Matrix
from tunery.gateway.engine.models.native.weight_layout import Format, PackedWeight, pack_dense

__all__ = ["LinearGroup", "PackedEmbedding", "Workspace", "dequantize", "project"]

ROW_PADDING = 16
"""Floats between rows of outputs, so that a column's elements do not all fall into the same few sets of a cache."""


class Workspace:
    """Scratch memory for A x, LoRA's inner activations; all layers of a model share one, which grows as needed."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def address(self, count: int) -> int:
        """Where `count` floats are free until the next call."""
        if count > self._memory.numel():
            self._memory = torch.empty(count)
        return self._memory.data_ptr()


class LinearGroup:
    """Linear layers that share their input, for example the q, k and v projections, computed in one call.

    Outputs lie side by side from `columns`, each padded to whole panels; `row_width` is a good distance between rows of
    outputs. Their LoRA entries are the adapters' targets from `first` on; the `following` targets after them are needed
    next and prefetched.
    """

    def __init__(
        self,
        kernels: Kernels,
        weights: Sequence[PackedWeight],
        dtype: torch.dtype,
        *,
        workspace: Workspace | None = None,
        first: int = 0,
        following: int = 0,
    ) -> None:
        inputs = {weight.k for weight in weights}
        if len(inputs) != 1:
            raise ValueError(f"linear layers that share their input have different numbers of inputs: {sorted(inputs)}")
        self.inputs = inputs.pop()
        self.columns = (0, *accumulate(weight.width for weight in weights[:-1]))
        self.outputs = sum(weight.width for weight in weights)
        self.row_width = self.outputs + ROW_PADDING
        self.first = first
        self._kernels, self._weights, self._dtype, self._following = kernels, tuple(weights), dtype, following
        self._structs = _structs(weights)
        self._workspace = workspace or Workspace()

    def __call__(
        self, x: Matrix, y: Matrix, segments: LoraSegments, *, rows: int, start: int = 0, column: int = 0
    ) -> None:
        """Write W x + b, with the deltas of `segments`, to float32 `y` from `column` on.

        `x` [T, inputs] has the model's dtype. Rows `start` to `start + rows` are computed; the segments' rows count
        from `start`.
        """
        if x.dtype is not self._dtype or x.columns != self.inputs or x.rows < start + rows:
            raise ValueError(f"the input must be {self._dtype} of {self.inputs} columns, not {x.dtype} of {x.columns}")
        if y.dtype is not torch.float32 or y.columns < column + self.outputs or y.rows < start + rows:
            raise ValueError(f"the output must be float32 of {column + self.outputs} columns or more, not {y.columns}")
        targets = len(self._structs)
        scratch = self._workspace.address(segments.rows * targets * segments.max_rank)
        self._kernels.linear(
            self._structs, targets, x.address(start), x.stride, rows, y.address(start) + column * 4, y.stride,
            segments.structs, len(segments.structs), self.first, self._following, scratch, segments.max_rank, x.wide,
        )  # fmt: skip


class PackedEmbedding:
    """An embedding whose weight [vocabulary, hidden] is the output head's, packed in bfloat16 or float32."""

    def __init__(self, kernels: Kernels, weight: PackedWeight) -> None:
        if weight.format not in (Format.BF16, Format.F32):
            raise ValueError(f"an embedding cannot be read from {weight.format.name} weights")
        self._kernels, self._weight, self._structs = kernels, weight, _structs([weight])

    def __call__(self, tokens: NDArray[np.int64], out: Matrix) -> None:
        """Write the embeddings of `tokens` [T] to the first rows of `out`, float32 [T or more, hidden], contiguous."""
        if tokens.dtype != np.int64 or not tokens.flags.c_contiguous:
            raise ValueError(f"token ids must be contiguous int64, not {tokens.dtype}")
        if out.dtype is not torch.float32 or out.stride != self._weight.k or out.rows < len(tokens):
            raise ValueError(
                f"embeddings need contiguous float32 rows of {self._weight.k}, not {tuple(out.tensor.shape)}"
            )
        self._kernels.embed(self._structs, tokens.ctypes.data, len(tokens), out.address())


def dequantize(kernels: Kernels, weight: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    """The weight that the kernels multiply `dtype` activations with, without its bias: float32 [n, k]."""
    bare = PackedWeight(weight.format, weight.n, weight.k, weight.data, weight.scales, weight.group)
    return _multiply(kernels, torch.eye(weight.k, dtype=dtype), bare).T.contiguous()


def project(kernels: Kernels, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [n, k] times a small `weight` [m, k] of the same dtype: float32 [n, m], batch-invariant."""
    if weight.shape[1] % 2 and weight.dtype != torch.float32:
        x, weight = functional.pad(x, (0, 1)), functional.pad(weight, (0, 1))
    return _multiply(kernels, x.contiguous(), pack_dense(weight))


def _multiply(kernels: Kernels, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    y = torch.empty(len(x), weight.width)
    LinearGroup(kernels, [weight], x.dtype)(Matrix(x), Matrix(y), LoraSegments(()), rows=len(x))
    return y[:, : weight.n]


def _structs(weights: Sequence[PackedWeight]) -> ctypes.Array[WeightStruct]:
    """The weights as the kernels read them; the tensors must outlive the result."""
    structs = (WeightStruct * len(weights))()
    for struct, weight in zip(structs, weights, strict=True):
        struct.data, struct.format = weight.data.data_ptr(), weight.format
        struct.scales = weight.scales.data_ptr() if weight.scales is not None else None
        struct.bias = weight.bias.data_ptr() if weight.bias is not None else None
        struct.k, struct.panels, struct.group = weight.k, weight.panels, weight.group
    return structs
