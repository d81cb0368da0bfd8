"""Owns what the trainer itself says of a few rows, kept so that another process can see whether serving says the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.objectives.loss import evaluation_mode

__all__ = ["Reference", "read_reference", "record_reference"]


class Reference(msgspec.Struct, frozen=True):
    """Rows, and of each the natural-log probabilities of its trained tokens, in order, as the trainer's model gives them."""

    rows: list[Example]
    log_probs: list[list[float]]


def record_reference(
    model: nn.Module, rows: Sequence[Example], path: Path, *, device: torch.device, dtype: torch.dtype
) -> None:
    """Write what `model` says of `rows` to `path`, whole or not at all; the model's mode is restored.

    It is asked row by row through its own forward, computing in `dtype` as it is trained.
    """
    with evaluation_mode(model, device, dtype):
        found = [_log_probs(model, row, device) for row in rows]
    staged = path.with_name(path.name + ".new")
    staged.write_bytes(msgspec.json.encode(Reference(list(rows), found)))
    staged.replace(path)


def read_reference(path: Path) -> Reference | None:
    """What was recorded, if anything was."""
    return msgspec.json.decode(path.read_bytes(), type=Reference) if path.is_file() else None


def _log_probs(model: Any, row: Example, device: torch.device) -> list[float]:
    ids = torch.tensor([row.ids], device=device)
    before = torch.tensor([at - 1 for at, trained in enumerate(row.trained) if trained and at], device=device)
    # Only where a trained token follows: a vocabulary's width for each of a long row's tokens would be gigabytes.
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=before).logits[0]
    wanted = ids[0, before + 1]
    found: list[float] = logits.float().log_softmax(-1).gather(-1, wanted[:, None])[:, 0].tolist()
    return found
