"""Training: everything around a trainer, from a request to a published version.

    from tunery.plugins.discovery import load_plugins
    from tunery.plugins.parameters import read_parameters
    from tunery.plugins.training import TrainRequest, train
    from tunery.registry.registry import Registry

    plugins, registry = load_plugins(), Registry.open()
    request = TrainRequest(
        adapter="acme/support", trainer="lora", base=registry.bases()[0].digest, data=("/data/tickets.jsonl",)
    )
    parameters = read_parameters(plugins.trainer("lora").parameters, request.parameters)
    version = train(request, parameters, registry=registry, plugins=plugins, on_event=print)

`resume` goes on with a job that was paused, cancelled or killed; `reproduce` trains a version again
and compares the digests.

A trainer is a class with `quant`, `load(context)` and `save(model, folder, context)`, see `Trainer`; rendering,
splitting, batches, the optimizer, evaluation, checkpoints, gates and publishing are done for it. Its `load` usually
begins with `load_base`. The names below are imported when they are used, because most of them bring torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunery.registry.lazy_exports import lazy_exports

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

__getattr__ = lazy_exports(
    __name__,
    {
        "LoadContext": "tunery.plugins.training.trainer",
        "Reproduction": "tunery.plugins.training.job.launcher",
        "SaveContext": "tunery.plugins.training.trainer",
        "TrainRequest": "tunery.plugins.training.inputs.request",
        "Trainer": "tunery.plugins.training.trainer",
        "load_base": "tunery.plugins.training.trainer",
        "reproduce": "tunery.plugins.training.job.launcher",
        "resume": "tunery.plugins.training.job.launcher",
        "train": "tunery.plugins.training.job.launcher",
    },
)
