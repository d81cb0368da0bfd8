"""Direct preference optimization: learning from pairs of answers without a reward model.

The reference is the model before the first step. Its log-likelihoods of every pair are computed once and stored in the
job's folder under the pair's content, so there is no second model in memory, and a resumed run uses the same numbers.
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
"""Pairs per forward pass without gradients; constant, because rounding depends on what is summed together."""


class Preference:
    """The objective of preference pairs, where h is the log-ratio of chosen to rejected answer, under the policy
    relative to the reference:

    - `sigmoid`: −log σ(βh), weighted 1 − `label_smoothing`, plus −log σ(−βh), weighted `label_smoothing` (DPO: Rafailov
      et al. 2023, equation 7; smoothing for labels that are wrong at that rate: Mitchell 2023).
    - `ipo`: (h − 1/2β)², with each answer's log-probability averaged over its tokens (Azar et al.
      2023, as in the authors' code).

    `sft_weight` adds that much of the chosen answer's negative log-likelihood per token (Pang et al. 2024).
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
        """Compute the untrained model's log-likelihoods of every pair, group by group, or read them from `path`."""
        if path.exists():
            self._reference = msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[float, float]])
            return
        for group in filter(None, rows):
            ordered = _ordered(group)
            better, worse = _log_likelihoods(model, ordered, device=device, dtype=dtype)
            likelihoods = zip(better.tolist(), worse.tolist(), strict=True)
            self._reference |= {row.content: pair for row, pair in zip(ordered, likelihoods, strict=True)}
        staged = path.with_name(path.name + ".new")
        staged.write_bytes(msgspec.json.encode(self._reference))
        sync(staged)
        staged.replace(path)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The losses of the pairs, summed."""
        better, worse = _halves(-row_losses(model, batch))
        return self._losses(better, worse, batch.examples).sum()

    def terms(self, rows: Sequence[Example]) -> int:
        """The number of pairs."""
        return len(rows)

    def ceiling(self, vocabulary: int, first: float) -> float:
        """Ten times the first step's loss (log 2, or 1/4β² for ipo), which collapsing log-probabilities exceed."""
        return 10 * first + 1

    def evaluate(
        self, model: nn.Module, rows: Sequence[Example], *, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, float]:
        """Means over pairs: the `loss`; the `reward_margin` βh; `preference_accuracy`, the share of pairs whose margin
        is positive; `ranking_accuracy`, the share whose chosen answer is more likely than the rejected one. Ties count
        half."""
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
        """The loss of each pair, float32 [pairs], from the log-likelihoods of chosen and rejected answers."""
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
        """h of each pair, each answer's log-likelihood divided by its length if `lengths` are
        given; float32 [pairs]."""
        before = torch.tensor([self._reference_of(row) for row in rows], dtype=better.dtype, device=better.device)
        gained, lost = better - before[:, 0], worse - before[:, 1]
        return gained - lost if lengths is None else gained / lengths[0] - lost / lengths[1]

    def _reference_of(self, row: Example) -> tuple[float, float]:
        """The reference's log-likelihoods of a pair's two answers."""
        try:
            return self._reference[row.content]
        except KeyError:
            raise TuneryError(
                f"there is no reference log-likelihood for line {row.line}; call prepare with every row before training"
            ) from None


def _log_likelihoods(
    model: nn.Module, rows: Sequence[Example], *, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihoods in nats of chosen and rejected answers, float32 [pairs] each; the model's mode is restored."""
    with evaluation_mode(model, device, dtype):
        batches = micro_batches(rows, PAIRS_AT_ONCE, device=device)
        halves = [_halves(-row_losses(model, batch)) for batch in batches]
    return torch.cat([better for better, _ in halves]), torch.cat([worse for _, worse in halves])


def _halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split [2 · pairs], as a batch orders them: first the chosen answers, then the rejected."""
    better, worse = values.chunk(2)
    return better, worse


def _ordered(rows: Sequence[Example]) -> list[Example]:
    return sorted(rows, key=lambda row: row.tokens)


def _lengths(rows: Sequence[Example], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Trained tokens of chosen and rejected answers, float32 [pairs] each."""
    counts = [row.targets for row in rows], [row.rejected.targets for row in rows if row.rejected]
    better, worse = (torch.tensor(count, dtype=torch.float32, device=device) for count in counts)
    return better, worse


def _wins(differences: torch.Tensor) -> torch.Tensor:
    """1 where positive, 0 where negative, 0.5 at zero."""
    return (differences.sign() + 1) / 2


def _mean(values: torch.Tensor) -> float:
    return math.fsum(values.tolist()) / len(values)
