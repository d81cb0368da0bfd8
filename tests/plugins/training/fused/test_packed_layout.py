"""Every row still sees its own tokens, in their order; what rows begin with alike is computed once, and what is a row's
own never shared.
"""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tunery.plugins.training.fused.packed_layout import pack_sequences

rows = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=8), min_size=1, max_size=6)


def padded(given: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    wide = max(map(len, given))
    ids = torch.tensor([[*row, *[0] * (wide - len(row))] for row in given])
    return ids, ids > 0


@given(rows, st.data())
def test_rows_see_their_own_tokens(given: list[list[int]], data: st.DataObject) -> None:
    own = [data.draw(st.integers(0, len(row) - 1)) for row in given]
    ids, kept = padded(given)
    layout, computed = pack_sequences(ids, kept, own)
    flat, places = ids[computed], computed.nonzero()[:, 1]
    assert list(layout.lengths) == computed.sum(dim=1).tolist()
    assert min(layout.lengths) >= 1
    for number, row in enumerate(given):
        assert flat[layout.contexts[number]].tolist() == row
        assert places[layout.contexts[number]].tolist() == list(range(len(row)))
        assert computed[number, own[number] : len(row)].all()


@given(rows)
def test_what_may_be_shared_is(given: list[list[int]]) -> None:
    ids, kept = padded(given)
    _, computed = pack_sequences(ids, kept, [len(row) - 1 for row in given])
    prefixes = {tuple(row[: end + 1]) for row in given for end in range(len(row) - 1)}
    assert sum(computed[number, : len(row) - 1].sum() for number, row in enumerate(given)) <= len(prefixes)


def test_the_first_rows_beginning_serves_the_others() -> None:
    ids, kept = padded([[1, 2, 3, 4], [1, 2, 5, 6], [9, 2, 3, 4], [1, 2, 5, 7, 8]])
    layout, computed = pack_sequences(ids, kept, [3, 3, 3, 4])
    assert computed.sum(dim=1).tolist() == [4, 2, 4, 2]
    assert [context.tolist() for context in layout.contexts] == [
        [0, 1, 2, 3],
        [0, 1, 4, 5],
        [6, 7, 8, 9],
        [0, 1, 4, 10, 11],
    ]
    _, whole = pack_sequences(ids, kept, [0, 0, 0, 0])
    assert torch.equal(whole, kept)
