"""Jobs, events and result files as OpenAI's clients know them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any, cast

from tunery.gateway.api.schemas.fine_tuning import (
    CheckpointMetrics,
    FineTuningCheckpoint,
    FineTuningEvent,
    FineTuningJob,
    JobDetails,
    JobError,
)
from tunery.plugins.parameters import AUTO
from tunery.registry.records import Checkpoint, Job, JobRequest, StoredEvent

__all__ = ["checkpoint_object", "event_number", "job_object", "event_object", "results_csv"]

EVENT_PREFIX = "ftevent-"
DIGITS = 4
"""Digits of a token accuracy; training rounds those of steps so."""
CSV_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


def job_object(job: Job, *, result_files: list[str], tenant: str) -> FineTuningJob:
    """A queued job as a client sees it."""
    details, progress = job.details or {}, job.progress or {}
    request = job.request or JobRequest(adapter=job.adapter, trainer=job.trainer, base="", data=())
    # What was chosen when the job began, and until then what was given.
    parameters = {name: value for name, value in request.parameters.items() if value != AUTO}
    parameters |= progress.get("parameters") or {}
    method = details.get("method", "dpo" if job.trainer == "dpo" else "supervised")
    hyperparameters = _hyperparameters(details.get("hyperparameters", {}), parameters, method)
    return FineTuningJob(
        id=job.id,
        created_at=int(job.created_at),
        started_at=_seconds(job.started_at),
        finished_at=_seconds(job.finished_at),
        estimated_finish=_estimated_finish(job, progress) if job.state == "running" else None,
        model=details.get("model") or details.get("base") or "",
        fine_tuned_model=request.model_name or f"{job.adapter}@{job.version}" if job.state == "succeeded" else None,
        organization_id=f"org-{tenant}",
        status=cast("Any", job.state),
        training_file=request.data[0] if request.data else "",
        validation_file=request.validation,
        result_files=result_files,
        trained_tokens=progress.get("trained_tokens") if job.state == "succeeded" else None,
        error=JobError(code=job.code, message=job.error, param=_param(job.code)) if job.state == "failed" else None,
        hyperparameters={name: value for name, value in hyperparameters.items() if name != "beta"},
        method={"type": method, method: {"hyperparameters": hyperparameters}},
        seed=int(details.get("seed", parameters.get("seed", 0))),
        user_provided_suffix=details.get("suffix"),
        integrations=details.get("integrations") or [],
        metadata=details.get("metadata"),
        tunery=JobDetails(
            adapter=job.adapter,
            trainer=job.trainer,
            base=details.get("base"),
            version=f"{job.adapter}@{job.version}" if job.version is not None else None,
            parent=request.parent,
            alias=request.alias,
            priority=job.priority,
            waiting=job.waiting,
            step=progress.get("step"),
            steps=progress.get("steps"),
        ),
    )


def _param(code: str | None) -> str | None:
    """The field of the request that an error is about."""
    return {
        "out_of_memory": "tunery.parameters",
        "file_not_found": "training_file",
        "file_damaged": "training_file",
    }.get(code or "")


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)


def _hyperparameters(asked: dict[str, Any], parameters: dict[str, Any], method: str) -> dict[str, Any]:
    """OpenAI's hyperparameters: what the trainer was given or has chosen, and "auto" for what is still open."""
    shown = {name: value if value is not None else AUTO for name, value in asked.items() if name != "beta"}
    if "epochs" in parameters:
        shown["n_epochs"] = _number(parameters["epochs"])
    if "batch_size" in parameters:
        shown["batch_size"] = _number(parameters["batch_size"])
    if method == "dpo":
        shown["beta"] = _number(parameters["beta"]) if "beta" in parameters else AUTO
    return shown


def _number(value: float | str) -> float:
    """A number that may be written as text, as an integer where it is one."""
    number = float(value)
    return int(number) if number.is_integer() else number


def _estimated_finish(job: Job, progress: dict[str, Any]) -> int | None:
    """By the pace of the steps so far, and the quote for everything else."""
    quoted, started = progress.get("quoted_seconds"), job.started_at
    step, steps, loop = progress.get("step"), progress.get("steps"), progress.get("loop_seconds")
    if quoted is None or started is None:
        return None
    if not step or not steps or not loop:
        return int(started + quoted)
    training = progress.get("quoted_training", quoted)
    return int(job.updated_at + loop / step * (steps - step) + max(quoted - training, 0.0))


def event_object(event: StoredEvent, job: Job) -> FineTuningEvent:
    """An event of a queued job; steps and evaluations are metrics."""
    metrics = _metrics(event)
    return FineTuningEvent(
        id=f"{_event_prefix(job)}{event.number}",
        created_at=int(event.at),
        level=event.level,
        message=event.message,
        type="metrics" if metrics is not None else "message",
        data=metrics,
        tunery={"kind": event.kind, "number": event.number, "at": event.at} | _rounded(event.data),
    )


def checkpoint_object(checkpoint: Checkpoint) -> FineTuningCheckpoint:
    """A checkpoint as a client sees it. Held-out rows are evaluated whole, so both losses of theirs are the same."""
    metrics = checkpoint.metrics
    return FineTuningCheckpoint(
        id=checkpoint.id,
        created_at=int(checkpoint.created_at),
        fine_tuned_model_checkpoint=checkpoint.name,
        fine_tuning_job_id=checkpoint.job,
        step_number=checkpoint.step,
        metrics=CheckpointMetrics(
            step=checkpoint.step,
            train_loss=metrics.get("train_loss"),
            train_mean_token_accuracy=_accuracy(metrics, "train_token_accuracy"),
            valid_loss=metrics.get("eval_loss"),
            valid_mean_token_accuracy=_accuracy(metrics),
            full_valid_loss=metrics.get("eval_loss"),
            full_valid_mean_token_accuracy=_accuracy(metrics),
        ),
    )


def event_number(event_id: str, job: Job) -> int | None:
    """The number in the id of an event of a job; None where it is not one."""
    digits = event_id.removeprefix(_event_prefix(job))
    fits = digits != event_id and digits.isascii() and digits.isdecimal() and len(digits) < 10
    return int(digits) if fits and not digits.startswith("0") else None


def _event_prefix(job: Job) -> str:
    return f"{EVENT_PREFIX}{job.id.removeprefix('ftjob-')}-"


def _metrics(event: StoredEvent) -> dict[str, Any] | None:
    data = event.data
    if event.kind == "step":
        accuracy = {"train_mean_token_accuracy": _accuracy(data)} if "token_accuracy" in data else {}
        return {"step": data["step"], "total_steps": data["steps"], "train_loss": data["loss"]} | accuracy
    if event.kind == "evaluated" and "eval_loss" in data:
        accuracy = {"full_valid_mean_token_accuracy": _accuracy(data)} if "token_accuracy" in data else {}
        return {"step": data["step"], "full_valid_loss": data["eval_loss"]} | accuracy
    return None


def _accuracy(figures: Mapping[str, Any], name: str = "token_accuracy") -> float | None:
    """A token accuracy as clients see it, with DIGITS digits after the point; None where it was not measured."""
    value = figures.get(name)
    return None if value is None else round(value, DIGITS)


def _rounded(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"token_accuracy": _accuracy(data)} if "token_accuracy" in data else data


def results_csv(events: list[StoredEvent]) -> str:
    """The result file: a line for each step, with OpenAI's columns. A step that was done again counts as done last."""
    steps: dict[int, dict[str, Any]] = {}
    for event in events:
        if event.kind == "step":
            steps[event.data["step"]] = {
                "step": event.data["step"],
                "train_loss": event.data["loss"],
                "train_accuracy": _accuracy(event.data),
            }
        elif event.kind == "evaluated" and "eval_loss" in event.data and event.data["step"] in steps:
            steps[event.data["step"]] |= {
                "valid_loss": event.data["eval_loss"],
                "valid_mean_token_accuracy": _accuracy(event.data),
            }
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(steps[step] for step in sorted(steps))
    return text.getvalue()
