"""Owns turning examples into batches: in an order that seed and epoch decide alone, neighbours of like length together."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence

import msgspec
import torch

__all__ = ["Batch", "Example", "collate", "epoch_batches", "micro_batches"]

POOL = 16
"""Rows are sorted by length within pools of this many batches: little padding, and still a shuffled order."""


class Example(msgspec.Struct, frozen=True):
    """One rendered example: `ids`, which of them are `trained`, and the `line` of the `file` it came from.

    Of a pair it is the better half, and `rejected` the worse.
    """

    ids: list[int]
    trained: list[bool]
    line: int
    file: str = ""
    rejected: Example | None = None

    @property
    def last_answer(self) -> tuple[int, int]:
        """Where the last run of trained tokens begins and ends; 0 and 0 where none is."""
        end = len(self.trained) - self.trained[::-1].index(True) if any(self.trained) else 0
        start = end
        while start and self.trained[start - 1]:
            start -= 1
        return start, end

    @property
    def tokens(self) -> int:
        """Ids of the row, of both halves where it is a pair."""
        return len(self.ids) + (len(self.rejected.ids) if self.rejected else 0)

    @property
    def content(self) -> str:
        """A digest of what is rendered, wherever it came from."""
        halves = [(half.ids, half.trained) for half in (self, self.rejected) if half]
        return hashlib.sha256(msgspec.json.encode(halves)).hexdigest()

    @property
    def targets(self) -> int:
        """Tokens the loss is taken over; the first token has no prediction."""
        return sum(self.trained[1:])


class Batch(msgspec.Struct, frozen=True):
    """Padded examples: `ids`, `mask` and `labels` are int64 [B, L], labels -100 where nothing is trained.

    `tokens` counts ids without padding, `targets` the trained ones; `lines` say where the examples came from. The worse halves of
    pairs follow all the better ones, in the same order.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    tokens: int
    targets: int
    lines: tuple[int, ...]
    examples: tuple[Example, ...] = ()


def epoch_batches(examples: Sequence[Example], batch_size: int, *, seed: int, epoch: int) -> list[list[Example]]:
    """The optimizer steps of one epoch: every example once, `batch_size` to a step (the last may have fewer)."""
    noise = random.Random(f"{seed}/{epoch}")  # noqa: S311 - an order, not a secret
    order = list(examples)
    noise.shuffle(order)
    pool = POOL * batch_size
    batches = []
    for start in range(0, len(order), pool):
        ranked = sorted(order[start : start + pool], key=lambda example: example.tokens)
        batches += [ranked[i : i + batch_size] for i in range(0, len(ranked), batch_size)]
    noise.shuffle(batches)
    return batches


def micro_batches(examples: Sequence[Example], size: int, *, device: torch.device) -> Iterator[Batch]:
    """The examples in padded pieces of `size`."""
    for start in range(0, len(examples), size):
        yield collate(examples[start : start + size], device=device)


def collate(examples: Sequence[Example], *, device: torch.device) -> Batch:
    """Pad examples on the right to the longest of them; both halves of pairs."""
    rows = [*examples, *(example.rejected for example in examples if example.rejected)]
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for number, row in enumerate(rows):
        count = len(row.ids)
        ids[number, :count] = torch.tensor(row.ids)
        mask[number, :count] = 1
        trained = torch.tensor(row.trained)
        labels[number, :count] = torch.where(trained, ids[number, :count], -100)
    return Batch(
        ids.to(device),
        mask.to(device),
        labels.to(device),
        sum(len(row.ids) for row in rows),
        sum(row.targets for row in rows),
        tuple(example.line for example in examples),
        tuple(examples),
    )
