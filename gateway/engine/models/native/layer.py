"""One decoder layer of the Llama kind: norm, attention, norm, MLP, on the native kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tunery.gateway.engine.models.native.adapted import AdaptedLinear, AdaptedNorm
from tunery.gateway.engine.models.native.architecture import Architecture
from tunery.gateway.engine.models.native.batch_metadata import BatchMetadata
from tunery.gateway.engine.models.native.kernels import Kernels
from tunery.gateway.engine.models.native.ops.attention import (
    HeadLayout,
    KVCache,
    PagedAttention,
    QKNorm,
    RotaryEmbedding,
)
from tunery.gateway.engine.models.native.ops.elementwise import swiglu
from tunery.gateway.engine.models.native.ops.linear import Workspace
from tunery.gateway.engine.models.native.ops.matrix import Matrix
from tunery.gateway.engine.models.native.weights import Weights, layer_targets

__all__ = ["Activations", "DecoderLayer", "Parts"]

TARGETS = 7
"""Linear layers of a decoder layer, in the order of `layer_targets`: q, k, v, o, gate, up, down."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What all layers of a decoder share; `pages` is the size of each layer's KV cache."""

    kernels: Kernels
    architecture: Architecture
    weights: Weights
    dtype: torch.dtype
    heads: HeadLayout
    rotary: RotaryEmbedding
    workspace: Workspace
    pages: int


class Activations:
    """Buffers for the activations of up to `rows` tokens.

    `hidden` is the residual stream, float32 [rows, hidden]. Outputs of linear layers are float32 and share one memory:
    each is used up before the next is written. Everything else has the model's dtype.
    """

    def __init__(self, parts: Parts, layer: DecoderLayer, rows: int) -> None:
        architecture, dtype, width = parts.architecture, parts.dtype, parts.heads.width
        self.rows = rows
        self.hidden = Matrix(torch.empty(rows, architecture.hidden))
        self.normed = Matrix(torch.empty(rows, architecture.hidden, dtype=dtype))
        self.q = Matrix(torch.empty(rows, width, dtype=dtype))
        self.attended = Matrix(torch.empty(rows, width, dtype=dtype))
        self.activated = Matrix(torch.empty(rows, architecture.intermediate, dtype=dtype))
        widths = [group.row_width for group in (layer.qkv_proj, layer.o_proj, layer.gate_up_proj, layer.down_proj)]
        memory = torch.empty(rows * max(widths))
        self.qkv, self.attention_output, self.gate_up, self.mlp_output = (
            Matrix(memory[: rows * width].view(rows, width)) for width in widths
        )


class DecoderLayer:
    """A layer with its KV cache; its linear layers add each row's LoRA deltas (ops/linear.py, csrc/lora.h)."""

    def __init__(self, parts: Parts, index: int) -> None:
        architecture, (linear, other) = parts.architecture, parts.weights
        prefix = f"model.layers.{index}"
        q, k, v, o, gate, up, down = layer_targets(index)
        first = TARGETS * index
        last = index == architecture.layers - 1

        def group(*names: str, first: int, following: int) -> AdaptedLinear:
            weights = [linear[name] for name in names]
            return AdaptedLinear(
                parts.kernels, weights, parts.dtype, workspace=parts.workspace, first=first, following=following
            )

        def norm(name: str) -> AdaptedNorm:
            return AdaptedNorm(parts.kernels, name, other[f"{name}.weight"], architecture.epsilon)

        self._kernels, self._rotary, self._prefix = parts.kernels, parts.rotary, prefix
        self.input_norm = norm(f"{prefix}.input_layernorm")
        self.qkv_proj = group(q, k, v, first=first, following=1)
        self.qk_norm: QKNorm = (None, None)
        if architecture.qk_norm:
            self.qk_norm = other[f"{prefix}.self_attn.q_norm.weight"], other[f"{prefix}.self_attn.k_norm.weight"]
        self.cache = KVCache(parts.heads, parts.pages, parts.dtype)
        self.attention = PagedAttention(parts.kernels, parts.heads, window=architecture.windows[index])
        self.o_proj = group(o, first=first + 3, following=2)
        self.post_attention_norm = norm(f"{prefix}.post_attention_layernorm")
        self.gate_up_proj = group(gate, up, first=first + 4, following=1)
        self.down_proj = group(down, first=first + 6, following=1 if last else 3)

    def __call__(self, a: Activations, batch: BatchMetadata, residual: Matrix | None) -> Matrix:
        """Run the layer on the residual stream `a.hidden`, to which it first adds `residual`, the previous layer's
        output.

        Return this layer's output, float32 [T, hidden], which the next norm adds.
        """
        segments, rows = batch.segments, batch.rows
        self.input_norm(a.hidden, a.normed, batch, added=residual)
        self.qkv_proj(a.normed, a.qkv, segments, rows=rows)
        self._rotate_and_cache(a, batch)
        self.attention(a.q, self.cache, a.attended, batch)
        self.o_proj(a.attended, a.attention_output, segments, rows=rows)
        self.post_attention_norm(a.hidden, a.normed, batch, added=a.attention_output)
        self.gate_up_proj(a.normed, a.gate_up, segments, rows=rows)
        swiglu(self._kernels, a.gate_up, self.gate_up_proj.columns[1], a.activated, rows=rows)
        self.down_proj(a.activated, a.mlp_output, segments, rows=rows)
        return a.mlp_output

    def _rotate_and_cache(self, a: Activations, batch: BatchMetadata) -> None:
        """Rotate queries and keys, and write keys and values to the KV cache; adapters may have QK
        norms of their own."""
        columns, (q_norm, k_norm) = self.qkv_proj.columns, self.qk_norm
        self._rotary(a.qkv, columns, a.q, self.cache, batch, norms=self.qk_norm, rows=batch.rows)
        for override in batch.segments.overrides:
            q_own, k_own = (override.adapter.norms.get(f"{self._prefix}.self_attn.{name}_norm") for name in "qk")
            if q_own is not None or k_own is not None:
                norms = (q_norm if q_own is None else q_own, k_norm if k_own is None else k_own)
                self._rotary(
                    a.qkv, columns, a.q, self.cache, batch, norms=norms, rows=override.count, start=override.start
                )  # fmt: skip
