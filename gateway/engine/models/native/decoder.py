"""Owns running a step through a base of the Llama kind with the native kernels; refuses other kinds (see architecture.py).

A layer is nine calls; activations stay in buffers that live as long as the decoder. Every row's bits depend on that row alone, as
kernels.c promises, so a request's result does not depend on its neighbours, on how its prompt was cut, or on the prefix cache.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from tunery.gateway.engine.adapters.adapter import AdapterShape, LowRank, dora_gain
from tunery.gateway.engine.adapters.reader import read_adapter
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.messages import AdapterSource
from tunery.gateway.engine.models.interface import DTYPES, Reduction, kv_cache_pages
from tunery.gateway.engine.models.native.architecture import Architecture, read_architecture
from tunery.gateway.engine.models.native.batch_arrays import Segments, Special, spans_of
from tunery.gateway.engine.models.native.kernels import Kernels, SpanRow, WeightRow
from tunery.gateway.engine.models.native.packed_adapter import PackedAdapter, pack_adapter
from tunery.gateway.engine.models.native.packing import dense, rows_of, unpacked, zeros
from tunery.gateway.engine.models.native.weights import EMBEDDING, HEAD, NORM, layer_targets, load_weights
from tunery.gateway.engine.scheduling.forward_batch import ForwardBatch
from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE

__all__ = ["Decoder", "supports"]

QKV, OUT, GATE_UP, DOWN = 0, 3, 4, 6
TARGETS = 7
"""Linear layers of a decoder layer, and where each group of them begins."""
APART = 16
"""Floats between rows of outputs, so that the same column of all rows does not compete for the same few places of a cache."""
_FOLLOWING = {QKV: 1, OUT: 2, GATE_UP: 1, DOWN: 3}
"""How many targets the group after one has."""


def supports(config: EngineConfig) -> bool:
    """Whether the base of `config` is of a kind that the decoder computes."""
    return read_architecture(Path(config.base_folder)) is not None


@dataclass(frozen=True, slots=True)
class _Group:
    """Linear layers that share their input; a row of their outputs, side by side at `columns`, is `width` floats from the next."""

    rows: ctypes.Array[WeightRow]
    width: int
    columns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: _Group
    o: _Group
    gate_up: _Group
    down: _Group
    before: torch.Tensor
    after: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    window: int
    name: str


class _Buffers:
    """Activations of up to `rows` tokens."""

    def __init__(self, a: Architecture, rows: int, dtype: torch.dtype, widest: int) -> None:
        self.rows = rows
        self.h = torch.empty(rows, a.hidden)
        self.x = torch.empty(rows, max(a.hidden, a.heads * a.size), dtype=dtype)
        self.q = torch.empty(rows, a.heads * a.size, dtype=dtype)
        self.mixed = torch.empty(rows, a.heads * a.size, dtype=dtype)
        self.gated = torch.empty(rows, a.intermediate, dtype=dtype)
        self.y = torch.empty(rows, widest)


class Decoder:
    """A Model; see models/interface.py."""

    def __init__(self, config: EngineConfig, kernels: Kernels) -> None:
        architecture = read_architecture(Path(config.base_folder))
        if architecture is None:
            raise ValueError("not a base of the Llama kind")
        self.argmax_logsumexp: Reduction | None = kernels.argmax_logsumexp
        self._k, self._a = kernels, architecture
        self._dtype = DTYPES[config.dtype]
        self._wide = int(self._dtype == torch.float32)
        self.device = torch.device("cpu")
        self.vocab_size = architecture.vocab_size
        self.context_length = min(architecture.longest, config.context_length or architecture.longest)
        self._linear, self._other = load_weights(config, architecture, self._dtype)
        self.base_bytes = sum(p.bytes for p in self._linear.values()) + sum(t.nbytes for t in self._other.values())
        self.targets = [name for layer in range(architecture.layers) for name in layer_targets(layer)] + [HEAD]
        self._layers = [self._layer(index) for index in range(architecture.layers)]
        self._head = self._group(HEAD)
        self._norm = self._other[f"{NORM}.weight"]
        self._cosine, self._sine = self._rotations()
        self.kv_pages = kv_cache_pages(config, self.context_length)
        self._keys, self._values = (self._cache() for _ in range(2))
        widest = max(max(g.width for g in (x.qkv, x.o, x.gate_up, x.down)) for x in self._layers)
        self._widest = widest
        self._buffers = _Buffers(architecture, PAGE_SIZE, self._dtype, widest)
        self._logits = torch.empty(1, self._head.width)
        self._scratch = torch.empty(0)
        self.shape = self._shape()

    # -- adapters ---------------------------------------------------------------------------------------------------------

    def read_adapter(self, source: AdapterSource) -> PackedAdapter:
        """See Model.read_adapter."""
        loaded = read_adapter(source, self.shape, dtype=self._dtype, device=self.device)
        for name, pair in loaded.low_rank.items():
            if pair.gain is not None:
                gain = dora_gain(source, name, pair, unpacked(self._k, self._linear[name], self._dtype))
                loaded.low_rank[name] = LowRank(pair.a, pair.b, pair.scale, pair.bias, gain)
        for name in (EMBEDDING, HEAD):
            # PEFT saves an adapted embedding whole; where it only repeats the base's, there is nothing to replace.
            if name in loaded.replaced and torch.equal(loaded.replaced[name]["weight"], self._own(name)):
                del loaded.replaced[name]
        return pack_adapter(
            loaded,
            self.targets,
            biases={n: p.bias[: p.n] for n, p in self._linear.items() if p.bias is not None},
            embedding=EMBEDDING,
            norms=frozenset(name.removesuffix(".weight") for name in self._other),
            dtype=self._dtype,
        )

    def place_adapter(self, adapter: PackedAdapter) -> PackedAdapter:
        """See Model.place_adapter."""
        return adapter

    # -- a step -----------------------------------------------------------------------------------------------------------

    def run(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See Model.run."""
        rows = len(batch.tokens)
        if rows > self._buffers.rows:
            self._buffers = _Buffers(self._a, rows, self._dtype, self._widest)
        b = self._buffers
        segments = Segments(batch.segments)
        spans = spans_of(batch)
        self._embed(batch, b.h[:rows], segments)
        pending = 0
        for index, layer in enumerate(self._layers):
            self._run_layer(index, layer, batch, segments, spans, rows, pending)
            pending = layer.down.width
        self._normed(b.h, b.y, pending, rows, self._norm, NORM, b.x, segments)
        wanted = torch.from_numpy(batch.rows)
        final = b.x.view(-1)[: rows * self._a.hidden].view(rows, -1).index_select(0, wanted)
        count = len(batch.logits)
        return self._project(final[:count], batch), final[count:].float()

    def _run_layer(
        self,
        index: int,
        layer: _Layer,
        batch: ForwardBatch,
        segments: Segments,
        spans: ctypes.Array[SpanRow],
        rows: int,
        pending: int,
    ) -> None:
        """One decoder layer; `pending` is the width of the output in `y` that the residual still lacks."""
        a, b, k, wide, first = self._a, self._buffers, self._k, self._wide, index * TARGETS
        heads = a.heads * a.size
        self._normed(b.h, b.y, pending, rows, layer.before, f"{layer.name}.input_layernorm", b.x, segments)
        self._linears(layer.qkv, b.x, a.hidden, rows, b.y, segments, first + QKV)
        self._rotate(index, layer, batch, 0, rows, layer.q_norm, layer.k_norm)
        for special in segments.special:
            q_norm, k_norm = (special.adapter.norms.get(f"{layer.name}.self_attn.{one}_norm") for one in "qk")
            if q_norm is not None or k_norm is not None:
                own = (layer.q_norm if q_norm is None else q_norm, layer.k_norm if k_norm is None else k_norm)
                self._rotate(index, layer, batch, special.start, special.count, *own)
        k.attend(
            spans, len(spans), b.q.data_ptr(), self._keys[index].data_ptr(), self._values[index].data_ptr(),
            a.heads, a.kv_heads, a.size, a.size**-0.5, layer.window, b.mixed.data_ptr(), wide,
        )  # fmt: skip
        self._linears(layer.o, b.mixed, heads, rows, b.y, segments, first + OUT)
        self._normed(
            b.h, b.y, layer.o.width, rows, layer.after, f"{layer.name}.post_attention_layernorm", b.x, segments
        )
        self._linears(layer.gate_up, b.x, a.hidden, rows, b.y, segments, first + GATE_UP)
        k.swiglu(
            b.y.data_ptr(),
            layer.gate_up.width,
            layer.gate_up.columns[1],
            rows,
            a.intermediate,
            b.gated.data_ptr(),
            wide,
        )
        self._linears(layer.down, b.gated, a.intermediate, rows, b.y, segments, first + DOWN)

    def _rotate(
        self,
        index: int,
        layer: _Layer,
        batch: ForwardBatch,
        start: int,
        count: int,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
    ) -> None:
        """Queries, keys and values of `count` rows from `start` on, out of `y` to where attention finds them."""
        a, b, (_, keys, values) = self._a, self._buffers, layer.qkv.columns
        y, q = (
            t.data_ptr() + start * width * t.element_size()
            for t, width in ((b.y, layer.qkv.width), (b.q, a.heads * a.size))
        )
        positions, slots = (array[start:].ctypes.data for array in (batch.positions, batch.slots))
        self._k.rotate(
            y, layer.qkv.width, keys, values, count, a.heads, a.kv_heads, a.size,
            _address(q_norm), _address(k_norm), a.epsilon, self._cosine.data_ptr(), self._sine.data_ptr(),
            positions, slots, q, self._keys[index].data_ptr(), self._values[index].data_ptr(), self._wide,
        )  # fmt: skip

    def _linears(
        self, group: _Group, x: torch.Tensor, width: int, rows: int, y: torch.Tensor, segments: Segments, first: int
    ) -> None:
        """y = the group's linear layers of x, rows of `width`, with the adapters' corrections and whole layers."""
        self._call(group.rows, x.data_ptr(), width, rows, y.data_ptr(), group.width, segments, first)
        for special in segments.special:
            for offset, column in enumerate(group.columns):
                whole = special.adapter.whole.get(first + offset)
                if whole is not None:
                    at = x.data_ptr() + special.start * width * x.element_size()
                    to = y.data_ptr() + (special.start * group.width + column) * y.element_size()
                    self._call(
                        rows_of(whole), at, width, special.count, to, group.width, special.alone(), first + offset
                    )

    def _call(
        self,
        weights: ctypes.Array[WeightRow],
        x: int,
        width: int,
        rows: int,
        y: int,
        ys: int,
        segments: Segments,
        first: int,
    ) -> None:
        """The kernel for linear layers, with room for its sums."""
        needed = segments.places * len(weights) * segments.ranks
        if needed > self._scratch.numel():
            self._scratch = torch.empty(needed)
        self._k.linear(
            weights, len(weights), x, width, rows, y, ys, segments.array, len(segments.array), first,
            self._following(first), self._scratch.data_ptr(), segments.ranks, self._wide,
        )  # fmt: skip

    def _following(self, first: int) -> int:
        """How many targets the group after the one that begins at `first` has; nothing follows a single target of a group."""
        last = len(self.targets) - 1
        return min(_FOLLOWING.get(first % TARGETS, 0), last - first)

    def _normed(
        self,
        h: torch.Tensor,
        delta: torch.Tensor,
        width: int,
        rows: int,
        gain: torch.Tensor,
        name: str,
        out: torch.Tensor,
        segments: Segments,
    ) -> None:
        """h += delta (when it has a width), out = norm(h); with the gains of adapters that bring their own."""
        size, epsilon, wide = self._a.hidden, self._a.epsilon, self._wide
        added = delta.data_ptr() if width else None
        self._k.norm(h.data_ptr(), added, width, rows, size, gain.data_ptr(), epsilon, out.data_ptr(), wide)
        for special in segments.special:
            own = special.adapter.norms.get(name)
            if own is not None:
                at, to = (t.data_ptr() + special.start * size * t.element_size() for t in (h, out))
                self._k.norm(at, None, 0, special.count, size, own.data_ptr(), epsilon, to, wide)

    def _embed(self, batch: ForwardBatch, h: torch.Tensor, segments: Segments) -> None:
        """The tokens' embeddings, float32, with those of adapters that change them."""
        tokens = torch.from_numpy(batch.tokens)
        if self._a.tied:
            self._k.embed(self._head.rows, batch.tokens.ctypes.data, len(batch.tokens), h.data_ptr())
        else:
            h.copy_(self._other[f"{EMBEDDING}.weight"][tokens])
        for special in segments.special:
            self._change(tokens[special.rows], h[special.rows], special)

    def _product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x [n, k] times the small `weight` [m, k], both of the model's dtype: float32 [n, m], each row by itself as everywhere."""
        if weight.shape[1] % 2 and not self._wide:
            x, weight = functional.pad(x, (0, 1)), functional.pad(weight, (0, 1))
        packed, x = dense(weight), x.contiguous()
        y = torch.empty(x.shape[0], packed.width)
        none = Segments(())
        self._k.linear(
            rows_of(packed), 1, x.data_ptr(), x.shape[1], x.shape[0], y.data_ptr(), packed.width, none.array, 0, 0, 0,
            None, 0, self._wide,
        )  # fmt: skip
        return y[:, : weight.shape[0]]

    def _change(self, tokens: torch.Tensor, h: torch.Tensor, special: Special) -> None:
        """Give `tokens` the embeddings of an adapter that has its own, in place of or on top of the base's in `h`."""
        adapter = special.adapter
        if adapter.embedding is not None:
            h.copy_(adapter.embedding[tokens])
        if adapter.embedding_pair is not None:
            pair = adapter.embedding_pair
            delta = self._product(functional.embedding(tokens, pair.a.T), pair.b)
            h.add_(delta, alpha=pair.scale * special.weight)
        if EMBEDDING in adapter.rows:
            own = adapter.rows[EMBEDDING]
            match = tokens[:, None] == own.ids
            h.copy_(torch.where(match.any(1, keepdim=True), own.values[match.int().argmax(1)].float(), h))

    def _project(self, final: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """Logits of the rows that want them."""
        rows, first = len(final), len(self.targets) - 1
        if rows > self._logits.shape[0]:
            self._logits = torch.empty(rows, self._head.width)
        logits = self._logits[:rows]
        if rows:
            segments = Segments(batch.output_segments)
            self._linears(self._head, final, self._a.hidden, rows, logits, segments, first)
            for special in segments.special:
                if HEAD in special.adapter.rows:
                    own = special.adapter.rows[HEAD]
                    logits[special.rows, own.ids] = self._product(final[special.rows], own.values)
        return logits[:, : self.vocab_size]

    # -- making it --------------------------------------------------------------------------------------------------------

    def _group(self, *names: str) -> _Group:
        packed = [self._linear[name] for name in names]
        columns = tuple(sum(p.width for p in packed[:index]) for index in range(len(packed)))
        return _Group(rows_of(*packed), sum(p.width for p in packed) + APART, columns)

    def _layer(self, index: int) -> _Layer:
        name = f"model.layers.{index}"
        q, k, v, o, gate, up, down = layer_targets(index)
        other = self._other
        return _Layer(
            self._group(q, k, v),
            self._group(o),
            self._group(gate, up),
            self._group(down),
            other[f"{name}.input_layernorm.weight"],
            other[f"{name}.post_attention_layernorm.weight"],
            other[f"{name}.self_attn.q_norm.weight"] if self._a.qk_norm else None,
            other[f"{name}.self_attn.k_norm.weight"] if self._a.qk_norm else None,
            self._a.windows[index],
            name,
        )

    def _rotations(self) -> tuple[torch.Tensor, torch.Tensor]:
        """RoPE's cosines and sines, float32 [context, size/2]."""
        frequencies = torch.tensor(self._a.inverse_frequencies)
        angles = torch.arange(self.context_length).float()[:, None] * frequencies
        return angles.cos().contiguous(), angles.sin().contiguous()

    def _cache(self) -> list[torch.Tensor]:
        """A tensor per layer; the system backs its pages with zeros as they are touched."""
        size = (self.kv_pages + 1) * PAGE_SIZE * self._a.kv_heads * self._a.size
        return [zeros(size, self._dtype) for _ in range(self._a.layers)]

    def _own(self, name: str) -> torch.Tensor:
        """The embedding or head as it was, [vocabulary, hidden]."""
        if name == EMBEDDING and not self._a.tied:
            return self._other[f"{EMBEDDING}.weight"]
        return unpacked(self._k, self._linear[HEAD], self._dtype).to(self._dtype)

    def _shape(self) -> AdapterShape:
        """What the base offers to adapters."""
        shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, packed in self._linear.items():
            shapes[name] = {"weight": (packed.n, packed.k)} | ({"bias": (packed.n,)} if packed.bias is not None else {})
        for name, tensor in self._other.items():
            shapes.setdefault(name.removesuffix(".weight"), {})["weight"] = tuple(tensor.shape)
        shapes[EMBEDDING] = {"weight": (self._a.vocab_size, self._a.hidden)}
        return AdapterShape(shapes, EMBEDDING, HEAD, self._a.tied)


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
