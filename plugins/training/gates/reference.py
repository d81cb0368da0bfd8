"""The trainer's own log-probabilities of a few rows, stored so that a gate can compare them with those of serving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.folder import replace_file
from tunery.plugins.training.objectives.loss import evaluation_mode

__all__ = ["Reference", "read_reference", "record_reference"]


class Reference(msgspec.Struct, frozen=True):
    """Rows, and for each row the natural-log probabilities of its trained tokens, in order, under
    the trainer's model."""

    rows: list[Example]
    log_probs: list[list[float]]


def record_reference(
    model: nn.Module, rows: Sequence[Example], path: Path, *, device: torch.device, dtype: torch.dtype
) -> None:
    """Write the log-probabilities of `rows` under `model` to `path`, whole or not at all; the model's mode is restored.

    Rows go one by one through the model's own forward pass, which computes in `dtype` as in training.
    """
    with evaluation_mode(model, device, dtype):
        log_probs = [_log_probs(model, row, device) for row in rows]
    replace_file(path, msgspec.json.encode(Reference(list(rows), log_probs)))


def read_reference(path: Path) -> Reference | None:
    """What was recorded, or None."""
    return msgspec.json.decode(path.read_bytes(), type=Reference) if path.is_file() else None


def _log_probs(model: Any, row: Example, device: torch.device) -> list[float]:
    ids = torch.tensor([row.ids], device=device)
    before = torch.tensor([at - 1 for at, trained in enumerate(row.trained) if trained and at], device=device)
    # Logits only where a trained token follows: for all tokens of a long row they would take gigabytes.
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=before).logits[0]
    wanted = ids[0, before + 1]
    values: list[float] = logits.float().log_softmax(-1).gather(-1, wanted[:, None])[:, 0].tolist()
    return values
