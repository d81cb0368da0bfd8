"""Checkpoints: everything that the next step depends on, written whole or not at all."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tunery.registry.errors import InvalidInput, StorageFailed, is_full
from tunery.registry.storage.disk import sync

__all__ = ["Progress", "load_checkpoint", "load_weights", "save_checkpoint", "save_weights"]

WEIGHTS, STATE = "trained.safetensors", "state.pt"


class Progress(msgspec.Struct, frozen=True):
    """How far a run is: steps done (which give the sampler's position), tokens without padding, seconds in the loop,
    first and last loss, the last step's share of correct tokens where the objective counts them, and every evaluation as
    (step, held-out loss), with its other figures by name."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first: float | None = None
    loss: float = 0.0
    token_accuracy: float | None = None
    evaluations: list[tuple[int, float]] = []
    figures: list[dict[str, float]] = []


def save_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    fingerprint: str,
    progress: Progress,
) -> None:
    """Replace the checkpoint in `folder`; `fingerprint` identifies data and settings.

    When StorageFailed is raised, the old one stays.
    """
    with _writing(folder):
        staged = folder.with_name(folder.name + ".new")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        save_file(_trained(model), staged / WEIGHTS)
        state = {
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "random": _random_state(),
            "fingerprint": fingerprint,
            "progress": msgspec.to_builtins(progress),
        }
        # To a Python file: torch's own writer hides the disk's error.
        with (staged / STATE).open("wb") as file:
            torch.save(state, file)
        for path in (*staged.iterdir(), staged):
            sync(path)
        old = folder.with_name(folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        staged.rename(folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    fingerprint: str,
) -> Progress:
    """Restore everything and return the progress; after a save that was killed, this is the checkpoint before it."""
    folder = next((f for f in (folder, folder.with_name(folder.name + ".old")) if (f / STATE).exists()), folder)
    if not (folder / STATE).exists():
        return Progress()
    # weights_only: tensors and plain values, never code.
    state: dict[str, Any] = torch.load(folder / STATE, weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise InvalidInput(
            "the data, the base or the parameters changed since this job's checkpoint; start a new job instead of resuming",
            code="resume_mismatch",
        )
    load_weights(model, folder / WEIGHTS)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    _set_random_state(state["random"])
    return msgspec.convert(state["progress"], Progress)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the trained weights to `path`, whole or not at all."""
    staged = path.with_name(path.name + ".new")
    with _writing(path):
        save_file(_trained(model), staged)
        sync(staged)
        staged.replace(path)


@torch.no_grad()
def load_weights(model: nn.Module, path: Path) -> None:
    """Restore the weights that `save_weights` wrote."""
    weights = load_file(path)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(weights[name])


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def _random_state() -> dict[str, Any]:
    """The states of all generators that a step may draw from: torch's on every device, and Python's."""
    version, numbers, gauss = random.getstate()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": devices, "python": [version, list(numbers), gauss]}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn errors of the disk, safetensors and torch into StorageFailed."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        full = is_full(error)
        why = "the disk is full" if full else str(error)
        raise StorageFailed(
            f"{why}: {path.name} of {path.parent.name} could not be written; free some space and go on with "
            f"tunery train --resume {path.parent.name}",
            code="disk_full" if full else None,
        ) from error
