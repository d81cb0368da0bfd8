"""Apply adapters that replace parameters of the base: whole modules, norms, embeddings and single token rows.

LoRA deltas are not here: the kernels add them (ops/linear.py). Each layer first computes all rows with the base's
parameters and then the rows of such adapters again with theirs, so that an adapter never changes another request's
bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from tunery.gateway.engine.models.native.batch_metadata import BatchMetadata, LoraSegments, OverrideSegment
from tunery.gateway.engine.models.native.kernels import Kernels
from tunery.gateway.engine.models.native.ops.elementwise import RMSNorm
from tunery.gateway.engine.models.native.ops.linear import LinearGroup, Workspace, project
from tunery.gateway.engine.models.native.ops.matrix import Matrix
from tunery.gateway.engine.models.native.weight_layout import PackedWeight

__all__ = ["AdaptedLinear", "AdaptedNorm", "override_embeddings", "override_logits"]


class AdaptedLinear:
    """A LinearGroup in which adapters may replace whole layers (PEFT's `modules_to_save`)."""

    def __init__(
        self,
        kernels: Kernels,
        weights: Sequence[PackedWeight],
        dtype: torch.dtype,
        *,
        workspace: Workspace,
        first: int,
        following: int,
    ) -> None:
        self._kernels, self._dtype, self._workspace = kernels, dtype, workspace
        self._base = LinearGroup(kernels, weights, dtype, workspace=workspace, first=first, following=following)
        self.columns, self.row_width = self._base.columns, self._base.row_width

    def __call__(self, x: Matrix, y: Matrix, segments: LoraSegments, *, rows: int) -> None:
        """Write the layers' outputs for the first `rows` of `x`, with all adapters applied, to `y`."""
        self._base(x, y, segments, rows=rows)
        for override in segments.overrides:
            for index, column in enumerate(self.columns, start=self._base.first):
                weight = override.adapter.modules.get(index)
                if weight is not None:
                    own = LinearGroup(self._kernels, [weight], self._dtype, workspace=self._workspace, first=index)
                    own(x, y, override.alone(), rows=override.count, start=override.start, column=column)


class AdaptedNorm:
    """An RMSNorm whose gain adapters may replace; `name` is the module's in the base."""

    def __init__(self, kernels: Kernels, name: str, gain: torch.Tensor, epsilon: float) -> None:
        self._kernels, self._name, self._epsilon = kernels, name, epsilon
        self._base = RMSNorm(kernels, gain, epsilon)

    def __call__(self, hidden: Matrix, out: Matrix, batch: BatchMetadata, *, added: Matrix | None = None) -> None:
        """hidden += added, then out = norm(hidden), for the rows of `batch`."""
        self._base(hidden, out, rows=batch.rows, added=added)
        for override in batch.segments.overrides:
            gain = override.adapter.norms.get(self._name)
            if gain is not None:
                RMSNorm(self._kernels, gain, self._epsilon)(hidden, out, rows=override.count, start=override.start)


def override_embeddings(
    kernels: Kernels, name: str, tokens: torch.Tensor, hidden: torch.Tensor, override: OverrideSegment
) -> None:
    """Apply an adapter to the embeddings of its rows, in place: `hidden` float32 [n, hidden] of `tokens` int64 [n].

    `name` is the embedding's module in the base.
    """
    adapter = override.adapter
    if adapter.embedding is not None:
        hidden.copy_(adapter.embedding[tokens])
    if adapter.embedding_lora is not None:
        pair = adapter.embedding_lora
        delta = project(kernels, functional.embedding(tokens, pair.a.T), pair.b)
        hidden.add_(delta, alpha=pair.scale * override.weight)
    if name in adapter.token_rows:
        trained = adapter.token_rows[name]
        match = tokens[:, None] == trained.ids
        values = trained.values[match.int().argmax(1)].float()
        hidden.copy_(torch.where(match.any(1, keepdim=True), values, hidden))


def override_logits(
    kernels: Kernels, name: str, final: torch.Tensor, logits: torch.Tensor, segments: LoraSegments
) -> None:
    """Replace the logits [n, vocabulary] of tokens whose rows of the head were trained.

    `name` is the head's module in the base, `final` [n, hidden] its input.
    """
    for override in segments.overrides:
        if name in override.adapter.token_rows:
            trained = override.adapter.token_rows[name]
            logits[override.rows, trained.ids] = project(kernels, final[override.rows], trained.values)
