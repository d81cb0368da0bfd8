"""A base model of the Llama kind on the native kernels: embedding, decoder layers, final norm and output head.

Results are batch-invariant: every row's bits depend on that row alone (csrc/common.h), so a request's tokens do not
depend on its neighbours, on how its prompt was chunked, or on the prefix cache.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tunery.gateway.engine.adapters.adapter import AdapterShape, LowRank, dora_gain
from tunery.gateway.engine.adapters.reader import read_adapter
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.models.interface import DTYPES, Reduction, kv_cache_pages
from tunery.gateway.engine.models.native.adapted import (
    AdaptedLinear,
    AdaptedNorm,
    override_embeddings,
    override_logits,
)
from tunery.gateway.engine.models.native.adapter import NativeAdapter, Targets, build_adapter
from tunery.gateway.engine.models.native.architecture import Architecture, read_architecture
from tunery.gateway.engine.models.native.batch_metadata import BatchMetadata, LoraSegments
from tunery.gateway.engine.models.native.kernels import Kernels
from tunery.gateway.engine.models.native.layer import Activations, DecoderLayer, Parts
from tunery.gateway.engine.models.native.ops.attention import HeadLayout, RotaryEmbedding
from tunery.gateway.engine.models.native.ops.linear import PackedEmbedding, Workspace, dequantize
from tunery.gateway.engine.models.native.ops.matrix import Matrix
from tunery.gateway.engine.models.native.ops.sampling import argmax_logsumexp
from tunery.gateway.engine.models.native.weights import EMBEDDING, HEAD, NORM, Weights, layer_targets, load_weights
from tunery.gateway.engine.scheduling.forward_batch import ForwardBatch, Segment
from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE

__all__ = ["Decoder", "supports"]


def supports(config: EngineConfig) -> bool:
    """Whether the decoder computes the architecture of the base of `config`."""
    return read_architecture(Path(config.base_folder)) is not None


class Decoder:
    """A Model; see models/interface.py."""

    def __init__(self, config: EngineConfig, kernels: Kernels) -> None:
        architecture = read_architecture(Path(config.base_folder))
        if architecture is None:
            raise ValueError(f"{config.base_folder} is not a base that the native decoder computes")
        self.device = torch.device("cpu")
        self.vocab_size = architecture.vocab_size
        self.context_length = min(architecture.longest, config.context_length or architecture.longest)
        self.kv_pages = kv_cache_pages(config, self.context_length)
        self.argmax_logsumexp: Reduction | None = partial(argmax_logsumexp, kernels)
        self._dtype = DTYPES[config.dtype]
        self._weights = load_weights(config, architecture, self._dtype)
        self._parts = parts = self._shared_parts(kernels, architecture)
        linear, other = self._weights
        self._kernels = kernels
        self.base_bytes = sum(weight.bytes for weight in linear.values()) + sum(t.nbytes for t in other.values())
        self._embedding = None if not architecture.tied else PackedEmbedding(kernels, linear[HEAD])
        self._layers = [DecoderLayer(parts, index) for index in range(architecture.layers)]
        self._norm = AdaptedNorm(kernels, NORM, other[f"{NORM}.weight"], architecture.epsilon)
        targets = [name for layer in range(architecture.layers) for name in layer_targets(layer)]
        self._head = AdaptedLinear(
            kernels, [linear[HEAD]], self._dtype, workspace=parts.workspace, first=len(targets), following=0
        )
        self._targets = Targets(
            linear=[*targets, HEAD],
            biases={name: weight.bias[: weight.n] for name, weight in linear.items() if weight.bias is not None},
            embedding=EMBEDDING,
            norms=frozenset(name.removesuffix(".weight") for name in other),
            dtype=self._dtype,
        )
        self.shape = _adapter_shape(architecture, self._weights)
        self._activations = Activations(parts, self._layers[0], PAGE_SIZE)
        self._logits = torch.empty(1, self._head.row_width)

    def _shared_parts(self, kernels: Kernels, architecture: Architecture) -> Parts:
        """What the layers share; rotary tables [context, size / 2] are computed in float32, as transformers does."""
        heads = HeadLayout(architecture.heads, architecture.kv_heads, architecture.size)
        frequencies = torch.tensor(architecture.inverse_frequencies)
        angles = torch.arange(self.context_length).float()[:, None] * frequencies
        cosine, sine = angles.cos().contiguous(), angles.sin().contiguous()
        return Parts(
            kernels=kernels,
            architecture=architecture,
            weights=self._weights,
            dtype=self._dtype,
            heads=heads,
            rotary=RotaryEmbedding(kernels, heads, cosine, sine, architecture.epsilon),
            workspace=Workspace(),
            # The scheduler never hands out page 0.
            pages=self.kv_pages + 1,
        )

    # -- adapters ------------------------------------------------------------------------------------------------------

    def read_adapter(self, source: AdapterSource) -> NativeAdapter:
        """See Model.read_adapter."""
        loaded = read_adapter(source, self.shape, dtype=self._dtype, device=self.device)
        for name, pair in loaded.low_rank.items():
            if pair.gain is not None:
                gain = dora_gain(source, name, pair, dequantize(self._kernels, self._weights.linear[name], self._dtype))
                loaded.low_rank[name] = LowRank(pair.a, pair.b, pair.scale, pair.bias, gain)
        for name in (EMBEDDING, HEAD):
            # PEFT saves an adapted embedding whole; where it only repeats the base's, there is nothing to replace.
            if name in loaded.replaced and torch.equal(loaded.replaced[name]["weight"], self._base_weight(name)):
                del loaded.replaced[name]
        return build_adapter(loaded, self._targets)

    def place_adapter(self, adapter: NativeAdapter) -> NativeAdapter:
        """See Model.place_adapter."""
        return adapter

    def _base_weight(self, name: str) -> torch.Tensor:
        """The base's embedding or head, [vocabulary, hidden]."""
        if name == EMBEDDING and self._embedding is None:
            return self._weights.other[f"{EMBEDDING}.weight"]
        return dequantize(self._kernels, self._weights.linear[HEAD], self._dtype).to(self._dtype)

    # -- a forward pass ------------------------------------------------------------------------------------------------

    def run(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See Model.run."""
        metadata = BatchMetadata(batch)
        if metadata.rows > self._activations.rows:
            self._activations = Activations(self._parts, self._layers[0], metadata.rows)
        a = self._activations
        self._embed(batch.tokens, a.hidden, metadata)
        residual = None
        for layer in self._layers:
            residual = layer(a, metadata, residual)
        self._norm(a.hidden, a.normed, metadata, added=residual)
        final = a.normed.tensor.index_select(0, torch.from_numpy(batch.rows))
        count = len(batch.logits)
        return self._project(final[:count], batch.output_segments), final[count:].float()

    def _embed(self, tokens: NDArray[np.int64], hidden: Matrix, batch: BatchMetadata) -> None:
        """Write the tokens' embeddings, with those of adapters that change them, to the residual stream `hidden`."""
        if self._embedding is not None:
            self._embedding(tokens, hidden)
        else:
            weight = self._weights.other[f"{EMBEDDING}.weight"]
            hidden.tensor[: batch.rows] = weight[torch.from_numpy(tokens)]
        for override in batch.segments.overrides:
            own = torch.from_numpy(tokens[override.rows])
            override_embeddings(self._kernels, EMBEDDING, own, hidden.tensor[override.rows], override)

    def _project(self, final: torch.Tensor, output_segments: tuple[Segment, ...]) -> torch.Tensor:
        """Logits float32 [n, vocabulary] of `final` [n, hidden], the final hidden states of the batch's output rows."""
        rows = len(final)
        if rows > self._logits.shape[0]:
            self._logits = torch.empty(rows, self._head.row_width)
        logits = self._logits[:rows]
        if rows:
            segments = LoraSegments(output_segments)
            self._head(Matrix(final), Matrix(logits), segments, rows=rows)
            override_logits(self._kernels, HEAD, final, logits, segments)
        return logits[:, : self.vocab_size]


def _adapter_shape(architecture: Architecture, weights: Weights) -> AdapterShape:
    """What the base offers to adapters, by the shapes of its parameters."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, weight in weights.linear.items():
        shapes[name] = {"weight": (weight.n, weight.k)} | ({"bias": (weight.n,)} if weight.bias is not None else {})
    for name, tensor in weights.other.items():
        shapes.setdefault(name.removesuffix(".weight"), {})["weight"] = tuple(tensor.shape)
    shapes[EMBEDDING] = {"weight": (architecture.vocab_size, architecture.hidden)}
    return AdapterShape(shapes, EMBEDDING, HEAD, architecture.tied)
