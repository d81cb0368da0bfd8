"""Each operation against autograd in double precision, natively and plainly, at sizes that are no
multiple of a vector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tunery.plugins.training.fused import operations
from tunery.plugins.training.fused.attention import LONG, attend, attend_backward
from tunery.plugins.training.fused.packed_layout import PackedLayout


def noise(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(result: torch.Tensor, exact: torch.Tensor) -> None:
    """Equal to what the dtype can hold: a few roundings of the largest values around."""
    step = 2**-7 if result.dtype == torch.bfloat16 else 1e-5
    assert (result.double() - exact).abs().max() <= step * max(exact.abs().max().item(), 1e-3)


def gradients(value: torch.Tensor, grad: torch.Tensor, *by: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(value, by, grad.double())


def wide(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.double().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize(("rows", "width"), [(3, 16), (5, 83), (1, 576)])
def test_norm(dtype: torch.dtype, rows: int, width: int) -> None:
    x, grad, carried = (noise(rows, width, seed=n, dtype=dtype) for n in range(3))
    weight = torch.rand(width) + 0.5
    (exact_x,) = wide(x)
    exact = exact_x * torch.rsqrt(exact_x.pow(2).mean(1, keepdim=True) + 1e-5) * weight.double()
    y, scale = operations.rms_norm(x, weight, 1e-5)
    check(y, exact)
    by_x, again = operations.rms_norm_backward(grad, x, weight, scale, carried)
    check(by_x, carried.double() + gradients(exact, grad, exact_x)[0])
    assert torch.equal(again, y)


def test_rotations_turn_pairs_and_back(dtype: torch.dtype) -> None:
    x = noise(7, 3, 24, seed=1, dtype=dtype)
    angles = torch.arange(7.0)[:, None] * torch.rand(12, generator=torch.Generator().manual_seed(2))
    cosine, sine = angles.cos().repeat(1, 2).contiguous(), angles.sin().repeat(1, 2).contiguous()
    turned = operations.rotate(x.clone(), cosine, sine)
    exact = torch.view_as_real(
        torch.complex(x[..., :12].double(), x[..., 12:].double()) * torch.polar(torch.ones(1), angles)[:, None]
    )
    check(turned, torch.cat((exact[..., 0], exact[..., 1]), dim=2))
    check(operations.rotate(turned, cosine, sine, inverse=True), x.double())


def test_swiglu(dtype: torch.dtype) -> None:
    gate, up, grad = (noise(5, 83, seed=n, dtype=dtype) * 3 for n in range(3))
    exact_gate, exact_up = wide(gate, up)
    exact = functional.silu(exact_gate) * exact_up
    check(operations.swiglu(gate, up), exact)
    of_gate, of_up = gradients(exact, grad, exact_gate, exact_up)
    by_gate, by_up, again = operations.swiglu_backward(grad.clone(), gate, up)
    check(by_gate, of_gate)
    check(by_up, of_up)
    check(again, exact)


@pytest.mark.parametrize("length", [1, 15, 16, 37])
def test_causal_softmax(dtype: torch.dtype, length: int) -> None:
    scores, grad = (noise(2, 3 * length, length, seed=n, dtype=dtype) * 4 for n in range(2))
    hidden = torch.ones(length, length).triu(1).bool().repeat(3, 1)
    (exact_scores,) = wide(scores)
    exact = (exact_scores * 0.3).masked_fill(hidden, -torch.inf).softmax(2)
    shares = operations.causal_softmax(scores.clone(), 0.3)
    check(shares, exact)
    assert not shares[hidden.expand(2, -1, -1)].any()
    check(
        operations.causal_softmax_backward(shares, grad.clone(), 0.3),
        gradients(exact, grad.masked_fill(hidden, 0), exact_scores)[0],
    )


def test_cross_entropy(dtype: torch.dtype) -> None:
    logits = noise(6, 301, seed=1, dtype=dtype) * 5
    targets = torch.arange(6) * 50
    (exact_logits,) = wide(logits)
    targets[3] = logits[3].argmax()
    exact = functional.cross_entropy(exact_logits, targets, reduction="none")
    losses, correct = operations.cross_entropy(logits.clone(), targets, with_gradient=False)
    torch.testing.assert_close(losses.double(), exact.detach(), rtol=1e-5, atol=1e-5)
    assert correct.tolist() == (logits.argmax(dim=1) == targets).tolist()
    assert correct[3]
    assert not correct.all()
    operations.cross_entropy(logits, targets, with_gradient=True)
    check(logits, gradients(exact.sum(), torch.ones(()), exact_logits)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_hidden(dtype: torch.dtype, bad: float) -> None:
    x = noise(4, 32, seed=1, dtype=dtype)
    x[1, 3] = bad
    ones = torch.ones_like(x)
    assert not operations.rms_norm(x, torch.ones(32), 1e-5)[0][1].isfinite().all()
    assert not operations.swiglu(x * 1, ones)[1].isfinite().all() or bad > 0
    losses, _ = operations.cross_entropy(x.clone(), torch.zeros(4, dtype=torch.long), with_gradient=False)
    assert not losses[1].isfinite()
    scores = noise(1, 4, 4, seed=1, dtype=dtype)
    scores[0, 3, 2] = bad
    assert not operations.causal_softmax(scores, 1.0)[0, 3].isfinite().all()


def branches(*rows: tuple[int, int, int]) -> PackedLayout:
    """Rows of (own tokens, the earlier row that they begin as, for how many tokens)."""
    seen: list[torch.Tensor] = []
    start = 0
    for own, other, common in rows:
        before = seen[other][:common] if common else torch.empty(0, dtype=torch.int64)
        seen.append(torch.cat((before, torch.arange(start, start + own))))
        start += own
    return PackedLayout([own for own, _, _ in rows], seen)


@st.composite
def layouts(draw: Any) -> PackedLayout:
    rows: list[tuple[int, int, int]] = []
    known: list[int] = []
    for number in range(draw(st.integers(1, 5))):
        own, other = draw(st.integers(1, 20)), draw(st.integers(0, max(number - 1, 0)))
        common = draw(st.integers(0, known[other])) if number else 0
        rows.append((own, other, common))
        known.append(common + own)
    return branches(*rows)


def by_row(layout: PackedLayout, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
    """Each row as a whole by torch's own attention, of which its own tokens are kept."""
    outs = []
    for own, seen in zip(layout.lengths, layout.contexts, strict=True):
        queries, keys, values = (tensor[seen].transpose(0, 1)[None] for tensor in (q, k, v))
        whole = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        outs.append(whole[0].transpose(0, 1)[-own:])
    return torch.cat(outs)


@pytest.mark.slow
@given(layout=layouts(), heads=st.sampled_from([(2, 1), (3, 3), (4, 2)]), data=st.data())
def test_rows_attend_causally_to_what_they_see_alone(layout: PackedLayout, heads: tuple[int, int], data: Any) -> None:
    total, (queries, groups) = sum(layout.lengths), heads
    seed = data.draw(st.integers(0, 99))
    q = noise(total, queries, 8, seed=seed, dtype=torch.float32)
    k, v = (noise(total, groups, 8, seed=seed + n, dtype=torch.float32) for n in (1, 2))
    grad = noise(total, queries, 8, seed=seed + 3, dtype=torch.float32)
    out, shares = attend(q, k, v, layout, 0.4)
    results = attend_backward(grad, q, k, v, shares, layout, 0.4)
    inputs = wide(q, k, v)
    exact = by_row(layout, *inputs, scale=0.4)
    torch.testing.assert_close(out.double(), exact.detach(), rtol=1e-4, atol=1e-5)
    for one, other in zip(results, gradients(exact, grad, *inputs), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


LAYOUTS = {
    "one": branches((1, 0, 0)),
    "apart": branches((5, 0, 0), (37, 0, 0), (1, 0, 0), (64, 0, 0)),
    "tree": branches((70, 0, 0), (6, 0, 33), (33, 1, 35), (1, 0, 70), (40, 2, 68)),
}


@pytest.mark.parametrize("shape", [(4, 2, 64), (2, 2, 32), (6, 1, 96)], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_in_bfloat16_attention_is_exact_but_for_rounding(
    dtype: torch.dtype, shape: tuple[int, int, int], name: str
) -> None:
    (queries, groups, size), layout = shape, LAYOUTS[name]
    total, scale = sum(layout.lengths), size**-0.5
    q, grad = (noise(total, queries, size, seed=n, dtype=dtype) for n in (1, 2))
    k, v = (noise(total, groups, size, seed=n, dtype=dtype) for n in (3, 4))
    out, shares = attend(q, k, v, layout, scale)
    results = (out, *attend_backward(grad, q, k, v, shares, layout, scale))
    inputs = wide(q, k, v)
    exact = by_row(layout, *inputs, scale=scale)
    for one, other in zip(results, (exact, *gradients(exact, grad, *inputs)), strict=True):
        check(one, other)


def test_what_is_no_number_in_a_row_stays_in_it(dtype: torch.dtype) -> None:
    q, k, v = (noise(10, 2, 32, seed=n, dtype=dtype) for n in range(3))
    k[2, 0, 5] = float("nan")
    out, _ = attend(q, k, v, PackedLayout([4, 6]), 0.4)
    assert not out[2:4, 0].isfinite().any()
    assert out[4:].isfinite().all()
    assert out[:2].isfinite().all()


def test_rows_that_see_much_keep_no_square_of_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, grad = (noise(30, 2, 8, seed=n, dtype=torch.float32) for n in range(4))
    layout = branches((10, 0, 0), (14, 0, 0), (6, 1, 12))
    short = attend(q, k, v, layout, 0.5)
    expected = attend_backward(grad, q, k, v, short[1], layout, 0.5)
    monkeypatch.setattr("tunery.plugins.training.fused.attention.LONG", 12)
    assert LONG > 12
    out, shares = attend(q, k, v, layout, 0.5)
    assert [share.numel() for share in shares] == [2 * 10 * 10, 0, 0]
    torch.testing.assert_close(out, short[0], rtol=1e-5, atol=1e-5)
    for one, other in zip(attend_backward(grad, q, k, v, shares, layout, 0.5), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
