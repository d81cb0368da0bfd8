"""Owns the loss: cross-entropy of the trained tokens, summed, with logits only where there is something to predict."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional

from tunery.plugins.training.batches import Batch, Example, micro_batches

__all__ = ["mean_loss", "summed_loss"]


def summed_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Sum over the batch's trained tokens of their negative log-likelihood in nats, float32 []."""
    targets = batch.labels[:, 1:]
    # A vocabulary of tens of thousands makes the head as dear as many layers: compute it for the columns that need it.
    columns = (targets != -100).any(dim=0).nonzero()[:, 0]
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, logits_to_keep=columns).logits
    wanted = targets[:, columns]
    chosen = wanted != -100
    return functional.cross_entropy(logits[chosen].float(), wanted[chosen], reduction="sum")


@torch.no_grad()
def mean_loss(
    model: nn.Module, examples: Iterable[Example], *, batch_size: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Mean negative log-likelihood per trained token in nats, over all examples; the model's mode is restored."""
    training = model.training
    model.eval()
    ordered = sorted(examples, key=lambda example: len(example.ids))
    total, count = 0.0, 0
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for batch in micro_batches(ordered, batch_size, device=device):
            total += float(summed_loss(model, batch))
            count += batch.targets
    model.train(training)
    return total / max(count, 1)
