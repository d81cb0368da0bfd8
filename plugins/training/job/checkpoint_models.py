"""Keep what a queued job has trained after each epoch as a model that can be served while the job goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tunery.plugins.training.job.context import JobContext
from tunery.plugins.training.loop.checkpoint import Progress
from tunery.plugins.training.trainer import LoadContext, SaveContext
from tunery.registry import NewVersion

__all__ = ["checkpoint_keeper"]


def checkpoint_keeper(job: JobContext, load: LoadContext[Any]) -> Callable[[nn.Module, Progress], None] | None:
    """What keeps the model of an epoch; None where the job has no names for such models, or its trainer cannot save one
    in passing."""
    ledger = job.recorder.ledger
    if not (ledger.keeps_checkpoints and getattr(job.trainer, "saves_checkpoints", False)):
        return None

    def keep(model: nn.Module, progress: Progress) -> None:
        request = job.inputs.request
        with job.phases.of("saving"):
            folder = job.folder.new_epoch()
            job.trainer.save(model, folder, SaveContext(load=load, evaluate=None, base_loss=None, eval_loss=None))
            new = NewVersion(
                adapter=request.adapter,
                folder=folder,
                base=job.inputs.base,
                method=request.trainer,
                manifest={},
                metrics=_metrics(progress),
                actor=request.actor,
            )
            ledger.keep_checkpoint(new, progress.step)

    return keep


def _metrics(progress: Progress) -> dict[str, float]:
    """What was measured after the epoch's last step."""
    measured = {"train_loss": progress.loss}
    if progress.token_accuracy is not None:
        measured["train_token_accuracy"] = progress.token_accuracy
    for (step, loss), figures in zip(progress.evaluations, progress.figures, strict=True):
        if step == progress.step:
            measured |= figures | {"eval_loss": loss}
    return measured
