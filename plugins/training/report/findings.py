"""What the losses of rows before and after training mean: better or worse, forgotten, mislabelled, memorised.

Nothing is concluded from too few rows. All losses are in nats per trained token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

__all__ = [
    "Change",
    "Note",
    "Outcome",
    "RowLoss",
    "bootstrap",
    "compare",
    "forgetting",
    "hardest",
    "memorised",
    "outcome",
    "suspicious",
]

Outcome = Literal["win", "tie", "loss"]
Split = Literal["train", "held_out", "general"]
Array = np.ndarray[Any, np.dtype[np.float64]]

TIE = 0.02
"""A row's loss must change by more than this to count as better or worse: two percent in likelihood per token."""
KEPT = 0.1
"""How far the loss on the general set may rise before it counts as forgetting: a tenth in perplexity."""
LIKE = 30
"""How many rows a row is compared with: those whose loss before training was nearest."""
FEWEST = 20
"""Training rows below which none is called suspicious."""
FEWEST_HELD_OUT = 8
"""Held-out rows below which no row is called memorised."""
RESAMPLES = 2000


class RowLoss(msgspec.Struct, frozen=True):
    """One row: `tokens` are its trained tokens, `before` and `after` its losses by the base and by the tuned model."""

    file: str
    line: int
    split: Split
    tokens: int
    before: float
    after: float


class Change(msgspec.Struct, frozen=True):
    """Mean losses over rows, each by its tokens, and the 95 % interval (`low`, `high`) of after - before."""

    rows: int
    tokens: int
    before: float
    after: float
    low: float
    high: float


class Note(msgspec.Struct, frozen=True):
    """A row worth a look; `like` is the median loss after training of the rows that it was compared with."""

    file: str
    line: int
    tokens: int
    before: float
    after: float
    like: float | None = None


def compare(rows: Sequence[RowLoss]) -> Change | None:
    """How the mean loss changed, by paired bootstrap over rows; None for no rows."""
    if not rows:
        return None
    tokens = np.array([row.tokens for row in rows], dtype=float)
    before, after = (np.array([getattr(row, name) for row in rows]) * tokens for name in ("before", "after"))
    low, high = bootstrap(after - before, tokens)
    total = float(tokens.sum())
    return Change(len(rows), int(total), float(before.sum()) / total, float(after.sum()) / total, low, high)


def bootstrap(lost: Array, tokens: Array) -> tuple[float, float]:
    """The 95 % interval of sum(lost) / sum(tokens) over resampled rows (Koehn 2004), with a fixed
    seed; both float64 [rows]."""
    noise = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        drawn = noise.integers(len(lost), size=len(lost))
        means.append(float(lost[drawn].sum() / tokens[drawn].sum()))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def outcome(row: RowLoss) -> Outcome:
    """Whether the row's answer is more likely under the tuned model than under the base."""
    change = row.after - row.before
    return "win" if change < -TIE else "loss" if change > TIE else "tie"


def forgetting(change: Change) -> Literal["kept", "forgot", "unclear"]:
    """`forgot` when the loss surely rose by more than KEPT, `kept` when it surely did not, else `unclear`."""
    return "kept" if change.high <= KEPT else "forgot" if change.low > KEPT else "unclear"


def hardest(rows: Sequence[RowLoss], count: int) -> list[Note]:
    """The rows with the highest loss after training, highest first."""
    return [_note(row) for row in sorted(rows, key=lambda row: -row.after)[:count]]


def suspicious(rows: Sequence[RowLoss]) -> list[Note]:
    """Rows that were not learned as well as rows that were as hard before, or whose loss rose:
    their answers may be wrong.

    A row stands out when its loss is 0.2 nats above that of four fifths of its LIKE neighbours and above their median
    by three times their spread, or when it rose by 0.2 nats. So rows of a kind that is simply harder are not
    suspicious. Most suspicious first.
    """
    if len(rows) < FEWEST:
        return []
    ordered = sorted(rows, key=lambda row: row.before)
    ranked = []
    for at, row in enumerate(ordered):
        middle, most = np.percentile(_neighbours(ordered, at), [50, 80])
        stands_out = float((row.after - middle) / (most - middle + 0.1))
        if row.after - most > 0.2 and (stands_out > 3 or row.after - row.before > 0.2):
            ranked.append((stands_out, _note(row, float(middle))))
    return [note for _, note in sorted(ranked, key=lambda pair: -pair[0])]


def memorised(rows: Sequence[RowLoss], held_out: Sequence[RowLoss]) -> list[Note]:
    """Memorised training rows: those that the model predicts far better than held-out rows that
    were as hard before training.

    Far better: below half the loss that the best tenth of those held-out rows reach, and 0.3 nats
    below their median. Farthest first.
    """
    if len(held_out) < FEWEST_HELD_OUT:
        return []
    ordered = sorted(held_out, key=lambda row: row.before)
    before, after = (np.array([getattr(row, name) for row in ordered]) for name in ("before", "after"))
    notes = []
    for row in rows:
        like = after[np.argsort(np.abs(before - row.before), kind="stable")[:LIKE]]
        best, middle = np.percentile(like, [10, 50])
        if row.after < best / 2 and middle - row.after > 0.3:
            notes.append(_note(row, float(middle)))
    return sorted(notes, key=lambda note: note.after - (note.like or 0.0))


def _neighbours(ordered: Sequence[RowLoss], at: int) -> Array:
    """Losses after training of the LIKE rows around index `at`, without it; repeated rows count once."""
    start = min(max(0, at - LIKE // 2), max(0, len(ordered) - LIKE - 1))
    neighbours = [ordered[i] for i in range(start, min(len(ordered), start + LIKE + 1)) if i != at]
    return np.array([after for _, after in dict.fromkeys((row.before, row.after) for row in neighbours)])


def _note(row: RowLoss, like: float | None = None) -> Note:
    return Note(row.file, row.line, row.tokens, row.before, row.after, like)
