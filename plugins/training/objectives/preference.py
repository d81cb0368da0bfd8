"""Owns learning from pairs of answers without a reward model: direct preference optimization, and what it measures.

The reference is the model as it was before the first step. What it says of every pair is computed once and kept in the job's
folder under each pair's content, so there is no second model in memory and a resumed run sees the same numbers. Refuses pairs that the
reference was not asked about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import torch
from torch import nn
from torch.nn import functional

from tunery.plugins.training.examples.batches import Batch, Example, micro_batches
from tunery.plugins.training.objectives.loss import evaluation_mode, row_losses
from tunery.registry.errors import TuneryError
from tunery.registry.storage.disk import sync

__all__ = ["Preference"]

PAIRS_AT_ONCE = 4
"""Pairs of a forward pass without gradients. The same wherever the run is, because sums depend on what is summed together."""


class Preference:
    """The objective of pairs, with h the log-ratio of the better answer's odds against the worse's, policy over reference:

    - `sigmoid`: −log σ(βh), weighted 1 − `label_smoothing`, and −log σ(−βh), weighted `label_smoothing` (DPO: Rafailov et al.
      2023, equation 7; the smoothing, for labels that are wrong at that rate: Mitchell 2023).
    - `ipo`: (h − 1/2β)², with each answer's log-probability averaged over its tokens (Azar et al. 2023, as its authors have it).

    `sft_weight` adds that much of the better answer's negative log-likelihood a token (Pang et al. 2024).
    """

    relative = True

    def __init__(
        self,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        kind: Literal["sigmoid", "ipo"] = "sigmoid",
        sft_weight: float = 0.0,
    ) -> None:
        self.beta, self.label_smoothing, self.kind, self.sft_weight = beta, label_smoothing, kind, sft_weight
        self.unit = f"{'DPO' if kind == 'sigmoid' else 'IPO'} loss per pair"
        self._reference: dict[str, tuple[float, float]] = {}

    def prepare(
        self,
        model: nn.Module,
        rows: Sequence[Sequence[Example]],
        *,
        path: Path,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Ask the untrained model about every pair, each group of `rows` by itself, or read what it said from `path`."""
        if path.exists():
            self._reference = msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[float, float]])
            return
        for group in filter(None, rows):
            ordered = _ordered(group)
            better, worse = _log_likelihoods(model, ordered, device=device, dtype=dtype)
            said = zip(better.tolist(), worse.tolist(), strict=True)
            self._reference |= {row.content: pair for row, pair in zip(ordered, said, strict=True)}
        staged = path.with_name(path.name + ".new")
        staged.write_bytes(msgspec.json.encode(self._reference))
        sync(staged)
        staged.replace(path)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The sum of the pairs' losses."""
        better, worse = _halves(-row_losses(model, batch))
        return self._losses(better, worse, batch.examples).sum()

    def terms(self, rows: Sequence[Example]) -> int:
        """Pairs."""
        return len(rows)

    def ceiling(self, vocabulary: int, first: float) -> float:
        """Ten times what a run begins with, which is log 2, or 1/4β² for ipo; log-probabilities that collapse pass it."""
        return 10 * first + 1

    def evaluate(
        self, model: nn.Module, rows: Sequence[Example], *, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, float]:
        """Means over pairs, no gradient taken: the `loss`; the `reward_margin` βh; `preference_accuracy`, the share of pairs whose
        margin is positive; `ranking_accuracy`, the share whose better answer is the likelier one by itself. Ties count half."""
        ordered = _ordered(rows)
        better, worse = _log_likelihoods(model, ordered, device=device, dtype=dtype)
        margins = self.beta * self._ratios(better, worse, ordered)
        return {
            "loss": _mean(self._losses(better, worse, ordered)),
            "preference_accuracy": _mean(_wins(margins)),
            "reward_margin": _mean(margins),
            "ranking_accuracy": _mean(_wins(better - worse)),
        }

    def _losses(self, better: torch.Tensor, worse: torch.Tensor, rows: Sequence[Example]) -> torch.Tensor:
        """Of each pair its loss, float32 [pairs], from the log-likelihoods of its halves."""
        lengths = _lengths(rows, better.device)
        if self.kind == "ipo":
            losses = (self._ratios(better, worse, rows, lengths) - 1 / (2 * self.beta)) ** 2
        else:
            margins = self.beta * self._ratios(better, worse, rows)
            right, wrong = -functional.logsigmoid(margins), -functional.logsigmoid(-margins)
            losses = (1 - self.label_smoothing) * right + self.label_smoothing * wrong
        return losses - self.sft_weight * better / lengths[0] if self.sft_weight else losses

    def _ratios(
        self,
        better: torch.Tensor,
        worse: torch.Tensor,
        rows: Sequence[Example],
        lengths: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Of each pair h, each half divided by its length where `lengths` are given; float32 [pairs]."""
        before = torch.tensor([self._said(row) for row in rows], dtype=better.dtype, device=better.device)
        gained, lost = better - before[:, 0], worse - before[:, 1]
        return gained - lost if lengths is None else gained / lengths[0] - lost / lengths[1]

    def _said(self, row: Example) -> tuple[float, float]:
        """The reference's log-likelihoods of a pair's halves."""
        try:
            return self._reference[row.content]
        except KeyError:
            raise TuneryError(
                f"the reference model was not asked about line {row.line}; call prepare with every row before training"
            ) from None


def _log_likelihoods(
    model: nn.Module, rows: Sequence[Example], *, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each pair the log-likelihoods in nats of the better and the worse answer, float32 [pairs] each; the model's mode is kept."""
    with evaluation_mode(model, device, dtype):
        batches = micro_batches(rows, PAIRS_AT_ONCE, device=device)
        found = [_halves(-row_losses(model, batch)) for batch in batches]
    return torch.cat([better for better, _ in found]), torch.cat([worse for _, worse in found])


def _halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[2 · pairs] as a batch has them: the better ones, then the worse."""
    better, worse = values.chunk(2)
    return better, worse


def _ordered(rows: Sequence[Example]) -> list[Example]:
    return sorted(rows, key=lambda row: row.tokens)


def _lengths(rows: Sequence[Example], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Trained tokens of the better and of the worse answers, float32 [pairs] each."""
    counts = [row.targets for row in rows], [row.rejected.targets for row in rows if row.rejected]
    better, worse = (torch.tensor(count, dtype=torch.float32, device=device) for count in counts)
    return better, worse


def _wins(differences: torch.Tensor) -> torch.Tensor:
    """1 where positive, 0 where negative, a half where neither."""
    return (differences.sign() + 1) / 2


def _mean(values: torch.Tensor) -> float:
    return math.fsum(values.tolist()) / len(values)
