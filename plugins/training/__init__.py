"""What every trainer gets for nothing: data, loop, evaluation, checkpoints, manifest, publishing.

A trainer is a class with `quant`, `load(context)` and `save(model, folder, context)`; see `trainer.py`. Importing this package
imports torch.
"""

from tunery.plugins.training.host import resume, train
from tunery.plugins.training.run import TrainRequest
from tunery.plugins.training.trainer import LoadContext, SaveContext, Trainer, load_base

__all__ = ["LoadContext", "SaveContext", "TrainRequest", "Trainer", "load_base", "resume", "train"]
