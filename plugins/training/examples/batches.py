"""Turn examples into batches, in an order that depends only on seed and epoch, with examples of
similar length together."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence

import msgspec
import torch

__all__ = ["Batch", "Example", "collate", "epoch_batches", "micro_batches"]

POOL = 16
"""Rows are sorted by length within pools of this many batches: little padding, yet a shuffled order."""


class Example(msgspec.Struct, frozen=True):
    """One rendered example: token `ids`, which of them are `trained`, and the `line` of the `file` that it came from.

    A preference pair is the example of its chosen answer, with that of the rejected answer in `rejected`.
    """

    ids: list[int]
    trained: list[bool]
    line: int
    file: str = ""
    rejected: Example | None = None

    @property
    def last_answer(self) -> tuple[int, int]:
        """Start and end of the last run of trained tokens; 0 and 0 when there is none."""
        end = len(self.trained) - self.trained[::-1].index(True) if any(self.trained) else 0
        start = end
        while start and self.trained[start - 1]:
            start -= 1
        return start, end

    @property
    def tokens(self) -> int:
        """Number of token ids, of a pair those of both answers."""
        return len(self.ids) + (len(self.rejected.ids) if self.rejected else 0)

    @property
    def content(self) -> str:
        """A digest of the rendered tokens, independent of file and line."""
        halves = [(half.ids, half.trained) for half in (self, self.rejected) if half]
        return hashlib.sha256(msgspec.json.encode(halves)).hexdigest()

    @property
    def targets(self) -> int:
        """Number of tokens in the loss; the first token is never predicted."""
        return sum(self.trained[1:])


class Batch(msgspec.Struct, frozen=True):
    """Padded examples: `ids`, `mask` and `labels` are int64 [B, L], labels -100 where nothing is trained.

    `tokens` counts ids without padding, `targets` those in the loss; `lines` are the lines of the examples. Rejected
    answers of pairs follow all the chosen ones, in the same order.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    tokens: int
    targets: int
    lines: tuple[int, ...]
    examples: tuple[Example, ...] = ()


def epoch_batches(examples: Sequence[Example], batch_size: int, *, seed: int, epoch: int) -> list[list[Example]]:
    """The batches of one epoch: every example once, `batch_size` in each optimizer step but perhaps the last."""
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
    """The examples in padded batches of `size`."""
    for start in range(0, len(examples), size):
        yield collate(examples[start : start + size], device=device)


def collate(examples: Sequence[Example], *, device: torch.device) -> Batch:
    """Pad examples, of pairs both answers, on the right to the longest."""
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
