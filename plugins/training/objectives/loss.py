"""The supervised loss: cross-entropy summed over the trained tokens, with logits only where a
trained token is predicted.

Rows are packed end to end, and shared prefixes computed once, when the model is known to allow
that; otherwise they are padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from tunery.plugins.training.examples.batches import Batch, Example, micro_batches
from tunery.plugins.training.fused.head import is_frozen_linear, token_losses
from tunery.plugins.training.fused.packed_layout import pack_sequences
from tunery.plugins.training.fused.padding_free import (
    causal_lm_of,
    fused_layers,
    run_packed,
    supports_packing,
    uses_dropout,
)

__all__ = ["RowScores", "evaluation_mode", "mean_loss", "mean_scores", "row_losses", "row_scores"]


class RowScores(NamedTuple):
    """Of each row: the negative log-likelihood in nats, summed over its trained tokens, float32 [rows], differentiable;
    and how many of those tokens the model finds the likeliest, int64 [rows]."""

    nats: torch.Tensor
    correct: torch.Tensor


def row_losses(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The negative log-likelihood in nats, summed over the trained tokens of each row; float32 [rows],
    differentiable."""
    return row_scores(model, batch).nats


def row_scores(model: nn.Module, batch: Batch) -> RowScores:
    """What the model makes of each row of a batch."""
    inner = causal_lm_of(model)
    if inner is None or not supports_packing(inner):
        return _padded(model, batch)
    following = functional.pad(batch.labels[:, 1:], (0, 1), value=-100)
    predicting = following != -100
    kept, layers = _until_the_last(predicting) & batch.mask.bool(), fused_layers(inner)
    # Tokens before the first one that predicts a trained token may be shared with other rows.
    own = predicting.int().argmax(dim=1).tolist() if layers or not uses_dropout(inner) else [0] * len(kept)
    layout, computed = pack_sequences(batch.ids, kept, own)
    hidden, wanted = run_packed(inner, layers, batch.ids, layout, computed, predicting), following[predicting]
    head = inner.get_output_embeddings()
    if is_frozen_linear(head):
        return _per_row(*token_losses(hidden, head.weight, wanted), predicting)
    return _per_row(*_score(head(hidden), wanted), predicting)


@contextmanager
def evaluation_mode(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Within the block the model is in eval mode, without gradients, with autocast to `dtype`; its mode is restored."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            yield
    finally:
        model.train(training)


def mean_loss(
    model: nn.Module, examples: Iterable[Example], *, batch_size: int, device: torch.device, dtype: torch.dtype
) -> float:
    """The mean negative log-likelihood in nats per trained token of all examples; the model's mode is restored."""
    return mean_scores(model, examples, batch_size=batch_size, device=device, dtype=dtype)[0]


def mean_scores(
    model: nn.Module, examples: Iterable[Example], *, batch_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """Over all trained tokens of the examples: the mean negative log-likelihood in nats, and the share that the model
    finds the likeliest; the model's mode is restored."""
    ordered = sorted(examples, key=lambda example: len(example.ids))
    total, correct, count = 0.0, 0, 0
    with evaluation_mode(model, device, dtype):
        for batch in micro_batches(ordered, batch_size, device=device):
            scores = row_scores(model, batch)
            total += float(scores.nats.sum())
            correct += int(scores.correct.sum())
            count += batch.targets
    return total / max(count, 1), correct / max(count, 1)


def _until_the_last(predicting: torch.Tensor) -> torch.Tensor:
    """A mask [rows, L] of the tokens up to the last one that predicts a trained token, which are
    all that the loss needs."""
    kept = predicting.flip(1).cummax(dim=1).values.flip(1)
    kept[:, 0] = True
    return kept


def _padded(model: nn.Module, batch: Batch) -> RowScores:
    """The same through the model's own forward pass, with padding."""
    targets = batch.labels[:, 1:]
    # With a large vocabulary the head costs as much as many layers: compute it only for the columns that need it.
    columns = (targets != -100).any(dim=0).nonzero()[:, 0]
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, logits_to_keep=columns).logits
    wanted = targets[:, columns]
    chosen = wanted != -100
    return _per_row(*_score(logits[chosen], wanted[chosen]), chosen)


def _score(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses in nats, float32 [n], and whether no token is more likely than the target, bool [n]."""
    wide = logits.float()
    likeliest = wide.detach().gather(1, targets[:, None])[:, 0] >= wide.detach().amax(dim=1)
    return functional.cross_entropy(wide, targets, reduction="none"), likeliest


def _per_row(losses: torch.Tensor, correct: torch.Tensor, chosen: torch.Tensor) -> RowScores:
    """The scores [n] of the tokens `chosen` [rows, L], summed per row, always in the same order."""
    sizes = chosen.sum(dim=1).tolist()
    losses, correct = (torch.stack([piece.sum() for piece in each.split(sizes)]) for each in (losses, correct))
    return RowScores(losses, correct)
