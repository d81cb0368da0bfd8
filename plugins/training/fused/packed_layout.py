"""Pack sequences end to end without padding; a prefix that several share is computed once, by the first that has it.

The sequences form a tree, for example of a system prompt, a question, and its several answers. Each token attends to
what it would in its own sequence, at the same positions, so only rounding changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch

__all__ = ["PackedLayout", "pack_sequences"]

Tensor = torch.Tensor


class PackedLayout:
    """Packed sequences: each has `lengths` own tokens, at least one, at `slices` of the packed tokens.

    `contexts`, int64 [n] of each sequence, are the packed places of all tokens that its last one attends to, its own
    last; without them each sequence attends to its own tokens only.
    """

    def __init__(self, lengths: Sequence[int], contexts: Sequence[Tensor] = ()) -> None:
        self.lengths = tuple(lengths)
        self.slices = tuple(map(slice, accumulate(self.lengths, initial=0), accumulate(self.lengths)))
        self.contexts = tuple(contexts) or tuple(torch.arange(own.start, own.stop) for own in self.slices)

    @cached_property
    def longest_context(self) -> int:
        """The most tokens that the last one of a sequence attends to."""
        return max(len(context) for context in self.contexts)


def pack_sequences(ids: Tensor, kept: Tensor, shareable: Sequence[int]) -> tuple[PackedLayout, Tensor]:
    """Lay out the tokens `kept`, bool [B, L], of `ids`, int64 [B, L]; also which of them are computed, bool [B, L].

    A row shares with an earlier one what both begin with, at most its first `shareable` tokens.
    """
    on_cpu, computed = ids.cpu(), kept.clone()
    lengths: list[int] = []
    contexts: list[Tensor] = []
    start = 0
    for row, (count, most) in enumerate(zip(kept.sum(dim=1).tolist(), shareable, strict=True)):
        equal = (on_cpu[:row] == on_cpu[row]).cumprod(dim=1).sum(dim=1).tolist()
        common = [min(same, most, len(context)) for same, context in zip(equal, contexts, strict=True)]
        shared = max(common, default=0)
        prefix = contexts[common.index(shared)][:shared] if shared else on_cpu.new_empty(0)
        end = start + count - shared
        computed[row, :shared] = False
        lengths.append(end - start)
        contexts.append(torch.cat((prefix, torch.arange(start, end))))
        start = end
    return PackedLayout(lengths, [context.to(ids.device) for context in contexts]), computed
