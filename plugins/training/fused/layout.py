"""Owns how rows lie end to end, and what they begin with alike: that is computed once, by the first row that has it.

Rows are so the branches of a tree: a system prompt, the questions of several answers, both halves of a pair. Each token still sees what
it would see in its own row, at the same positions, so nothing but rounding changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch

__all__ = ["Layout", "lay"]

Tensor = torch.Tensor


class Layout:
    """Rows by the tokens they have of their own, `lengths`, each at least one, laid end to end; `seen` int64 [n] of each row is where
    all tokens lie that its last one sees, the row's own last; every row itself alone where nothing is said. `rows` are where the own lie."""

    def __init__(self, lengths: Sequence[int], seen: Sequence[Tensor] = ()) -> None:
        self.lengths = tuple(lengths)
        self.rows = tuple(map(slice, accumulate(self.lengths, initial=0), accumulate(self.lengths)))
        self.seen = tuple(seen) or tuple(torch.arange(row.start, row.stop) for row in self.rows)

    @cached_property
    def longest(self) -> int:
        """Tokens that the last one of some row sees, at most."""
        return max(len(places) for places in self.seen)


def lay(ids: Tensor, kept: Tensor, own: Sequence[int]) -> tuple[Layout, Tensor]:
    """How the tokens `kept` bool [B, L] of `ids` int64 [B, L] lie, each row from its start; and which of them are computed, bool [B, L].

    A row takes from an earlier one what both begin with, but no token from the `own`-th on, which is its own in any case.
    """
    told, computed = ids.cpu(), kept.clone()
    lengths: list[int] = []
    seen: list[Tensor] = []
    start = 0
    for row, (whole, most) in enumerate(zip(kept.sum(dim=1).tolist(), own, strict=True)):
        alike = (told[:row] == told[row]).cumprod(dim=1).sum(dim=1).tolist()
        common = [min(count, most, len(places)) for count, places in zip(alike, seen, strict=True)]
        shared = max(common, default=0)
        before = seen[common.index(shared)][:shared] if shared else told.new_empty(0)
        end = start + whole - shared
        computed[row, :shared] = False
        lengths.append(end - start)
        seen.append(torch.cat((before, torch.arange(start, end))))
        start = end
    return Layout(lengths, [places.to(ids.device) for places in seen]), computed
