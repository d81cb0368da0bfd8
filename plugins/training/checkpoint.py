"""Owns the state of a run on disk: everything that the next step depends on, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunery.registry.errors import InvalidInput

__all__ = ["load_checkpoint", "save_checkpoint"]

WEIGHTS, STATE = "trained.safetensors", "state.pt"


def save_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    step: int,
    fingerprint: str,
    counters: dict[str, float],
) -> None:
    """Replace the checkpoint in `folder`; `fingerprint` identifies data and settings."""
    staged = folder.with_name(folder.name + ".new")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    save_file({name: p.detach().cpu().contiguous() for name, p in _trained(model)}, staged / WEIGHTS)
    state = {
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "random": torch.get_rng_state(),
        "step": step,
        "fingerprint": fingerprint,
        "counters": counters,
    }
    torch.save(state, staged / STATE)
    for path in staged.iterdir():
        _sync(path)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    staged.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    fingerprint: str,
) -> tuple[int, dict[str, float]]:
    """Put everything back and return the step to go on from and the counters; a killed save leaves the one before it."""
    folder = next((f for f in (folder, folder.with_name(folder.name + ".old")) if (f / STATE).exists()), folder)
    if not (folder / STATE).exists():
        return 0, {}
    # weights_only: tensors and plain values, never code.
    state: dict[str, Any] = torch.load(folder / STATE, weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise InvalidInput(
            "the data, the base or the parameters changed since this job's checkpoint; start a new job instead of resuming",
            code="resume_mismatch",
        )
    weights = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in _trained(model):
            parameter.copy_(weights[name])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["random"])
    return int(state["step"]), dict(state["counters"])


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
