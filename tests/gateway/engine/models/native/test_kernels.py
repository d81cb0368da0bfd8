"""The native kernels against torch in double precision, and what they promise: a row's bits depend
on that row alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tests.gateway.engine.hypothesis_settings import often
from tests.gateway.engine.models.native.kernel_calls import Layer, Part, random_adapter, random_layer
from tunery.gateway.engine.models.native.batch_metadata import BatchMetadata
from tunery.gateway.engine.models.native.kernels import PANEL, Kernels, load_kernels
from tunery.gateway.engine.models.native.ops.attention import (
    HeadLayout,
    KVCache,
    PagedAttention,
    QKNorm,
    RotaryEmbedding,
)
from tunery.gateway.engine.models.native.ops.elementwise import RMSNorm, swiglu
from tunery.gateway.engine.models.native.ops.linear import PackedEmbedding, dequantize
from tunery.gateway.engine.models.native.ops.matrix import Matrix
from tunery.gateway.engine.models.native.ops.sampling import argmax_logsumexp
from tunery.gateway.engine.models.native.weight_layout import pack_dense
from tunery.gateway.engine.scheduling.forward_batch import ForwardBatch, Span
from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE

KERNELS = load_kernels()
pytestmark = pytest.mark.skipif(
    KERNELS is None, reason="the native kernels were not built, or this CPU lacks AVX-512 BF16"
)
DTYPES = [torch.float32, torch.bfloat16]
KINDS = ["dense", "nf4", "int8"]


@pytest.fixture
def kernels() -> Kernels:
    assert KERNELS is not None
    return KERNELS


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """That many threads of torch, which are the kernels'."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def noise(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Bit for bit, and not by being not-a-number."""
    return bool(torch.isfinite(left).all()) and torch.equal(left, right)


# -- linear layers ----------------------------------------------------------------------------------------------------


@st.composite
def calls(draw: st.DrawFn, kind: str, dtype: torch.dtype) -> tuple[Layer, torch.Tensor, list[Part]]:
    """Layers of odd sizes, some rows, and adapters over any part of them, compositions included."""
    assert KERNELS is not None
    odd = kind == "dense" and dtype == torch.float32
    k = draw(st.integers(1, 260)) if odd else 2 * draw(st.integers(1, 130))
    shapes = draw(st.lists(st.integers(1, 2 * PANEL + 20), min_size=1, max_size=3))
    layer = random_layer(KERNELS, kind, dtype, shapes, k, seed=draw(st.integers(0, 99)), bias=draw(st.booleans()))
    rows = draw(st.integers(1, 33))
    parts: list[Part] = []
    cuts = sorted(draw(st.sets(st.integers(0, rows), max_size=5)))
    for start, end in itertools.pairwise(cuts):
        parts += draw(adapted(layer, start, end))
    return layer, noise(rows, k, seed=draw(st.integers(0, 99)), dtype=dtype), parts


@st.composite
def adapted(draw: st.DrawFn, layer: Layer, start: int, end: int) -> list[Part]:
    """Nothing, an adapter of any kind, or a composition of plain ones, on rows [start, end)."""
    ranks = st.lists(
        st.sampled_from([0, 1, 2, 3, 7, 8, 16, 33]), min_size=len(layer.weights), max_size=len(layer.weights)
    )
    seeds = st.integers(0, 99)
    kind = draw(st.sampled_from(["none", "plain", "composed", "gained", "biased"]))
    if kind == "none":
        return []
    if kind == "composed":
        weights = draw(st.lists(st.sampled_from([0.5, -1.0, 2.0]), min_size=2, max_size=3))
        return [layer.part(start, end, random_adapter(layer, draw(ranks), seed=draw(seeds)), w) for w in weights]
    own, gained = kind == "biased" and layer.weights[0].bias is not None, kind == "gained"
    bias = kind == "biased" and draw(st.booleans())
    return [
        layer.part(start, end, random_adapter(layer, draw(ranks), seed=draw(seeds), gain=gained, bias=bias, own=own))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_with_adapters_equal_torch(kind: str, dtype: torch.dtype) -> None:
    @often(40)
    @given(calls(kind, dtype))
    def check(call: tuple[Layer, torch.Tensor, list[Part]]) -> None:
        layer, x, parts = call
        values, errors = layer.expected(x, parts)
        assert ((layer(x, parts) - values).abs() <= errors).all()

    check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_bits_depend_on_that_row_alone(threads: int, kind: str, dtype: torch.dtype) -> None:
    @often(40)
    @given(calls(kind, dtype), st.data())
    def check(call: tuple[Layer, torch.Tensor, list[Part]], data: st.DataObject) -> None:
        layer, x, parts = call
        start = data.draw(st.integers(0, len(x) - 1))
        end = data.draw(st.integers(start + 1, len(x)))
        cut = [part for part in (one.cut(start, end) for one in parts) if part is not None]
        assert same(layer(x, parts)[start:end], layer(x[start:end].contiguous(), cut))

    check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [576, 1536])
def test_bits_are_the_same_for_any_number_of_threads_and_rows(
    kernels: Kernels, kind: str, dtype: torch.dtype, k: int
) -> None:
    # As long as the real base's inputs; twice what the kernels unpack at a time.
    layer = random_layer(kernels, kind, dtype, [200, 64], k, seed=1)
    x = noise(33, k, seed=2, dtype=dtype)
    adapters = [random_adapter(layer, ranks, seed=i) for i, ranks in enumerate([(16, 16), (5, 0), (64, 3)])]
    parts = [layer.part(11 * i, 11 * i + 11, one) for i, one in enumerate(adapters)]
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(layer(x, parts))
    torch.set_num_threads(1)
    singly = [layer(x[i : i + 1].contiguous(), [layer.part(0, 1, adapters[i // 11])]) for i in range(33)]
    assert all(same(one, torch.cat(singly)) for one in results)
    values, errors = layer.expected(x, parts)
    assert ((results[0] - values).abs() <= errors).all()


def test_unpacked_weights_are_what_is_multiplied(kernels: Kernels) -> None:
    weight = noise(70, 64, seed=1)
    for dtype in DTYPES:
        assert torch.equal(dequantize(kernels, pack_dense(weight.to(dtype)), dtype), weight.to(dtype).float())


# -- rows -------------------------------------------------------------------------------------------------------------


def normed(
    kernels: Kernels, h: torch.Tensor, delta: torch.Tensor | None, gain: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's norm of a copy of h [rows, size] (plus delta), and what the copy became."""
    h, out = h.clone(), torch.empty(h.shape, dtype=dtype)
    added = None if delta is None else Matrix(delta)
    RMSNorm(kernels, gain, 1e-5)(Matrix(h), Matrix(out), rows=len(h), added=added)
    return out, h


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 15, 64, 576, 577])
@pytest.mark.parametrize("rows", [1, 16, 40])
def test_norms_equal_torch(kernels: Kernels, threads: int, dtype: torch.dtype, size: int, rows: int) -> None:
    h, gain, wide = noise(rows, size, seed=1) * 3, noise(size, seed=2), noise(rows, size + 7, seed=3)
    for delta in (None, wide):
        out, left = normed(kernels, h, delta, gain, dtype)
        total = h if delta is None else h + delta[:, :size]
        assert torch.equal(left, total)
        expected = functional.rms_norm(total.double(), (size,), gain.double(), 1e-5)
        torch.testing.assert_close(out.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
        for row in range(0, rows, 7):
            own = None if delta is None else delta[row : row + 1]
            assert same(out[row : row + 1], normed(kernels, h[row : row + 1], own, gain, dtype)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [2, 30, 96, 1536])
def test_gated_units_equal_torch(kernels: Kernels, threads: int, dtype: torch.dtype, size: int) -> None:
    y = noise(9, 2 * size + 11, seed=4) * 20
    y[0, :2] = torch.tensor([-200.0, 200.0])  # where a careless exponential overflows

    def gated(y: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(y), size, dtype=dtype)
        swiglu(kernels, Matrix(y), size + 5, Matrix(out), rows=len(y))
        return out

    out = gated(y)
    expected = functional.silu(y[:, :size].double()) * y[:, size + 5 : 2 * size + 5].double()
    torch.testing.assert_close(out.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    assert all(same(out[row : row + 1], gated(y[row : row + 1])) for row in range(9))


@pytest.mark.parametrize("size", [1, 17, 320, 49152])
def test_argmax_and_logsumexp_equal_torch(kernels: Kernels, threads: int, size: int) -> None:
    logits = noise(7, size + 5, seed=5)[:, :size] * 8 + 3
    if size > 300:
        logits[1, 100:] = -torch.inf
        logits[2, [7, 40, 300]] = 99.0  # the first of equals
    best, log_z = argmax_logsumexp(kernels, logits)
    assert best.tolist() == [int((row == row.max()).nonzero()[0]) for row in logits]
    torch.testing.assert_close(log_z.double(), logits.double().logsumexp(1), rtol=1e-6, atol=1e-6)
    for row in range(7):
        alone = argmax_logsumexp(kernels, logits[row : row + 1])
        assert torch.equal(alone[0], best[row : row + 1])
        assert same(alone[1], log_z[row : row + 1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embeddings_are_the_heads_rows(kernels: Kernels, dtype: torch.dtype) -> None:
    weight = noise(101, 34, seed=6, dtype=dtype)
    tokens = np.array([0, 100, 47, 48, 49, 48])
    out = torch.empty(len(tokens), 34)
    PackedEmbedding(kernels, pack_dense(weight))(tokens, Matrix(out))
    assert torch.equal(out, weight[tokens].float())


# -- attention --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """An attention layer: sizes, `window` 0 for none, and whether queries and keys are normed; `dtype` of cache and
    queries.
    """

    heads: int
    kv_heads: int
    size: int
    window: int
    normed: bool
    dtype: torch.dtype

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.size

    @property
    def gains(self) -> tuple[torch.Tensor, torch.Tensor]:
        return noise(self.size, seed=8) + 1, noise(self.size, seed=9) + 1

    def rotations(self, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, float32 [longest, size/2]."""
        frequencies = 100.0 ** -(torch.arange(self.size // 2) * 2 / self.size)
        angles = torch.arange(longest)[:, None] * frequencies
        return angles.cos().contiguous(), angles.sin().contiguous()

    def expected(self, y: torch.Tensor) -> torch.Tensor:
        """Attention over one sequence of queries, keys and values y [length, width], by torch in double: [length, heads
        · size].
        """
        length, y = len(y), y.double()
        q, k, v = (
            part.unflatten(1, (-1, self.size))
            for part in y.split([n * self.size for n in (self.heads, self.kv_heads, self.kv_heads)], 1)
        )
        if self.normed:
            q, k = (
                functional.rms_norm(x, (self.size,), gain.double(), 1e-5)
                for x, gain in zip((q, k), self.gains, strict=True)
            )
        cosine, sine = (torch.cat((table, table), 1).double()[:, None] for table in self.rotations(length))
        half = self.size // 2
        q, k = (x * cosine + torch.cat((-x[..., half:], x[..., :half]), -1) * sine for x in (q, k))
        own, other = torch.arange(length)[:, None], torch.arange(length)
        seen = (other <= own) & (other > own - (self.window or length))
        mixed = functional.scaled_dot_product_attention(
            q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), attn_mask=seen, enable_gqa=True
        )
        return mixed.transpose(0, 1).flatten(1)


class Cache:
    """Sequences [length, width] by number, whose tokens go through the kernels in pieces, many sequences in a step."""

    def __init__(self, kernels: Kernels, attention: Attention, sequences: Sequence[torch.Tensor], *, seed: int) -> None:
        self.kernels, self.attention, self.sequences = kernels, attention, sequences
        counts = [math.ceil(len(y) / PAGE_SIZE) for y in sequences]
        order = np.random.default_rng(seed).permutation(sum(counts)).astype(np.int32)
        self.pages = [pages.copy() for pages in np.split(order, np.cumsum(counts)[:-1])]
        self.layout = HeadLayout(attention.heads, attention.kv_heads, attention.size)
        self.cache = KVCache(self.layout, sum(counts), attention.dtype)
        # What nobody wrote must not matter.
        for tensor in (self.cache.keys, self.cache.values):
            tensor.fill_(torch.nan)

    def step(self, pieces: Sequence[tuple[int, int, int]]) -> list[torch.Tensor]:
        """Compute tokens [begin, end) of sequences, given as (number, begin, end); what attention
        gives them, by piece."""
        a = self.attention
        y = torch.cat([self.sequences[number][begin:end] for number, begin, end in pieces])
        places = [np.arange(begin, end) for _, begin, end in pieces]
        slots = [
            self.pages[n][at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE
            for (n, _, _), at in zip(pieces, places, strict=True)
        ]
        positions, slots_of = np.concatenate(places), np.concatenate(slots).astype(np.int64)
        spans, start = [], 0
        for number, begin, end in pieces:
            spans.append(Span(start, start + end - begin, end, self.pages[number]))
            start += end - begin
        batch = BatchMetadata(ForwardBatch(positions, positions, slots_of, tuple(spans), (), (), (), ()))
        cosine, sine = a.rotations(max(len(s) for s in self.sequences))
        q, out = (torch.full((len(y), a.heads * a.size), torch.nan, dtype=a.dtype) for _ in range(2))
        columns = 0, a.heads * a.size, (a.heads + a.kv_heads) * a.size
        norms: QKNorm = a.gains if a.normed else (None, None)
        rotary = RotaryEmbedding(self.kernels, self.layout, cosine, sine, 1e-5)
        rotary(Matrix(y), columns, Matrix(q), self.cache, batch, norms=norms, rows=len(y))
        PagedAttention(self.kernels, self.layout, window=a.window)(Matrix(q), self.cache, Matrix(out), batch)
        return list(out.split([end - begin for _, begin, end in pieces]))


@st.composite
def attentions(draw: st.DrawFn, dtype: torch.dtype) -> Attention:
    kv_heads, group = draw(st.sampled_from([(1, 1), (2, 2), (3, 3), (2, 4), (1, 7), (4, 1)]))
    size, window = draw(st.sampled_from([16, 32, 48, 64, 96, 128])), draw(st.sampled_from([0, 0, 1, 5, 16, 40]))
    return Attention(kv_heads * group, kv_heads, size, window, draw(st.booleans()), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_equals_torch_whole_and_in_pieces(threads: int, dtype: torch.dtype) -> None:
    cut = st.integers(1, 75).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(1, n), max_size=5)))

    @often(40)
    @given(attentions(dtype), st.lists(cut, min_size=1, max_size=4))
    def check(attention: Attention, cuts: list[tuple[int, set[int]]]) -> None:
        assert KERNELS is not None
        sequences = [noise(length, attention.width, seed=seed) for seed, (length, _) in enumerate(cuts)]
        together = Cache(KERNELS, attention, sequences, seed=1)
        whole = together.step([(number, 0, length) for number, (length, _) in enumerate(cuts)])
        for y, out in zip(sequences, whole, strict=True):
            tolerance = 2e-5 if dtype == torch.float32 else 5e-2
            torch.testing.assert_close(out.double(), attention.expected(y), rtol=0, atol=tolerance)
        cache = Cache(KERNELS, attention, sequences, seed=2)
        for pieces in in_pieces(cuts):
            for (number, begin, end), out in zip(pieces, cache.step(pieces), strict=True):
                assert same(out, whole[number][begin:end])

    check()


def in_pieces(cuts: Sequence[tuple[int, set[int]]]) -> Iterator[list[tuple[int, int, int]]]:
    """Steps in which each sequence, given as its length and where it is cut, has its next piece
    (number, begin, end)."""
    pieces = [list(itertools.pairwise(sorted({0, length, *at}))) for length, at in cuts]
    for step in itertools.zip_longest(*pieces):
        yield [(number, *piece) for number, piece in enumerate(step) if piece is not None]
