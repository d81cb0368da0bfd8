"""The supervised loss: cross-entropy summed over the trained tokens, with logits only where a
trained token is predicted.

Rows are packed end to end, and shared prefixes computed once, when the model is known to allow
that; otherwise they are padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

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

__all__ = ["evaluation_mode", "mean_loss", "row_losses", "summed_loss"]


def row_losses(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The negative log-likelihood in nats, summed over the trained tokens of each row; float32
    [rows], differentiable."""
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
        losses = token_losses(hidden, head.weight, wanted)
    else:
        losses = functional.cross_entropy(head(hidden).float(), wanted, reduction="none")
    return _per_row(losses, predicting)


def summed_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The negative log-likelihood in nats, summed over the batch's trained tokens; float32 []."""
    return row_losses(model, batch).sum()


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
    ordered = sorted(examples, key=lambda example: len(example.ids))
    total, count = 0.0, 0
    with evaluation_mode(model, device, dtype):
        for batch in micro_batches(ordered, batch_size, device=device):
            total += float(summed_loss(model, batch))
            count += batch.targets
    return total / max(count, 1)


def _until_the_last(predicting: torch.Tensor) -> torch.Tensor:
    """A mask [rows, L] of the tokens up to the last one that predicts a trained token, which are
    all that the loss needs."""
    kept = predicting.flip(1).cummax(dim=1).values.flip(1)
    kept[:, 0] = True
    return kept


def _padded(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The same through the model's own forward pass, with padding."""
    targets = batch.labels[:, 1:]
    # With a large vocabulary the head costs as much as many layers: compute it only for the columns that need it.
    columns = (targets != -100).any(dim=0).nonzero()[:, 0]
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, logits_to_keep=columns).logits
    wanted = targets[:, columns]
    chosen = wanted != -100
    return _per_row(functional.cross_entropy(logits[chosen].float(), wanted[chosen], reduction="none"), chosen)


def _per_row(losses: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The `losses` [n] of the tokens `chosen` [rows, L], summed per row, always in the same order."""
    return torch.stack([piece.sum() for piece in losses.split(chosen.sum(dim=1).tolist())])
