"""What every trainer gets for nothing: data, loop, evaluation, checkpoints, manifest, publishing.

A trainer is a class with `quant`, `load(context)` and `save(model, folder, context)`; see `trainer.py`. The names below are
imported when they are asked for, because most of them bring torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunery.plugins.training.inputs.request import TrainRequest
    from tunery.plugins.training.job.launcher import Reproduction, reproduce, resume, train
    from tunery.plugins.training.trainer import LoadContext, SaveContext, Trainer, load_base

__all__ = [
    "LoadContext",
    "Reproduction",
    "SaveContext",
    "TrainRequest",
    "Trainer",
    "load_base",
    "reproduce",
    "resume",
    "train",
]

_PLACES = {
    "LoadContext": "trainer",
    "SaveContext": "trainer",
    "TrainRequest": "inputs.request",
    "Trainer": "trainer",
    "Reproduction": "job.launcher",
    "load_base": "trainer",
    "reproduce": "job.launcher",
    "resume": "job.launcher",
    "train": "job.launcher",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
