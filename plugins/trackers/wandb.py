"""Log a job to Weights & Biases, with what OpenAI's integration is given: project, name, entity and tags.

The key is that of the process that trains (WANDB_API_KEY, or `wandb login` on its machine).
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta

from tunery.plugins.events import Cancelled, Evaluated, EventSink, Failed, JobEvent, Started, StepCompleted, Succeeded
from tunery.registry.errors import InvalidInput
from tunery.registry.home import Home
from tunery.registry.records import Job

__all__ = ["WandbOptions", "read_options", "start"]

SECONDS = 30
"""How long a run may take to begin; the job goes on without it then."""


class WandbOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The integration's options, as OpenAI has them."""

    project: Annotated[str, Meta(min_length=1, max_length=128)]
    name: Annotated[str, Meta(max_length=128)] | None = None
    entity: Annotated[str, Meta(max_length=128)] | None = None
    tags: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=50)] | None = None


def read_options(options: object) -> dict[str, Any]:
    """The options as they are kept with the job; raise InvalidInput."""
    try:
        read = msgspec.convert(options, WandbOptions)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"wandb: {error}", param="integrations") from error
    kept: dict[str, Any] = msgspec.to_builtins(read)
    return kept


def start(job: Job, options: dict[str, Any]) -> EventSink:
    """Begin a run, or go on with that of the same job; returns what logs the job's events to it."""
    import wandb

    wanted = msgspec.convert(options, WandbOptions)
    run = wandb.init(
        project=wanted.project,
        name=wanted.name or job.id,
        entity=wanted.entity,
        tags=wanted.tags,
        id=job.id,
        resume="allow",
        dir=os.environ.get("WANDB_DIR") or str(Home.from_env().jobs / job.id),
        config={"adapter": job.adapter, "trainer": job.trainer, "job": job.id},
        settings=wandb.Settings(silent=True, console="off", init_timeout=SECONDS),
    )

    def log(event: JobEvent) -> None:
        match event:
            case Started():
                run.config.update({"rows": event.rows, "steps": event.steps}, allow_val_change=True)
            case StepCompleted():
                figures = {"train/loss": event.loss, "train/learning_rate": event.learning_rate}
                figures |= {"train/grad_norm": event.grad_norm, "train/tokens": event.tokens}
                if event.token_accuracy is not UNSET:
                    figures["train/token_accuracy"] = event.token_accuracy
                run.log(figures, step=event.step)
            case Evaluated() if event.eval_loss is not UNSET:
                run.log({"eval/loss": event.eval_loss} | {f"eval/{k}": v for k, v in event.figures.items()})
            case Succeeded():
                run.summary["version"] = event.version
                run.finish()
            case Failed() | Cancelled():
                run.finish(exit_code=1)

    return log
