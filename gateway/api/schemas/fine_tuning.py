"""The bodies of the fine-tuning endpoints, as OpenAI has them. `tunery` is the extension everywhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "FineTuningCheckpoint",
    "FineTuningCheckpointList",
    "FineTuningEvent",
    "FineTuningEventList",
    "FineTuningJob",
    "FineTuningJobList",
    "Hyperparameters",
    "JobCreate",
    "JobDetails",
    "JobError",
    "Method",
    "TuneryOptions",
]

Auto = Literal["auto"]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class Hyperparameters(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's hyperparameters; "auto" or null leaves one to Tunery, which chooses it from the data and the base."""

    n_epochs: Annotated[int, Meta(ge=1, le=50)] | Auto | None = None
    batch_size: Annotated[int, Meta(ge=1, le=256)] | Auto | None = None
    learning_rate_multiplier: Annotated[float, Meta(gt=0)] | Auto | None = None
    beta: Annotated[float, Meta(gt=0, le=2)] | Auto | None = None


class MethodOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one method."""

    hyperparameters: Hyperparameters | None = None


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """How to train: supervised or dpo, each with its options."""

    type: str
    supervised: MethodOptions | None = None
    dpo: MethodOptions | None = None


class TuneryOptions(msgspec.Struct, frozen=True, kw_only=True, rename={"parent": "from"}, forbid_unknown_fields=True):
    """What OpenAI's API has no words for.

    `trainer` and its `parameters` by name, the `adapter` (`tenant/name`) to make a version of, the version to continue
    `from`, an `alias` to point at the new version, rules of the data check to `allow`, whether to `force` what fails a gate (which is recorded), and the `priority`.
    """

    trainer: str | None = None
    parameters: dict[str, Any] | None = None
    adapter: str | None = None
    parent: str | None = None
    alias: str | None = None
    allow: list[str] | None = None
    force: bool | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] | None = None


class JobCreate(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/fine_tuning/jobs`. `hyperparameters` is the older form of `method`."""

    model: str
    training_file: str
    validation_file: str | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[dict[str, Any]], Meta(max_length=5)] | None = None
    tunery: TuneryOptions | None = None


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job failed."""

    code: str | None = None
    message: str | None = None
    param: str | None = None


class JobDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What OpenAI's job object has no fields for.

    `version` is the reference of what the job made, `waiting` why a queued job does not run yet.
    """

    adapter: str
    trainer: str
    base: str | None
    version: str | None
    parent: str | None
    alias: str | None
    priority: int
    waiting: str | None
    step: int | None
    steps: int | None


class FineTuningJob(msgspec.Struct, frozen=True, kw_only=True):
    """A fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    started_at: int | None
    finished_at: int | None
    estimated_finish: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    error: JobError | None
    hyperparameters: dict[str, Any] | None
    method: dict[str, Any]
    seed: int
    user_provided_suffix: str | None
    integrations: list[dict[str, Any]]
    metadata: dict[str, str] | None
    tunery: JobDetails


class FineTuningJobList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[FineTuningJob]
    has_more: bool


class FineTuningEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a job; `data` of a metrics event has OpenAI's names, `tunery` is the event as Tunery has it."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None
    tunery: dict[str, Any]


class FineTuningEventList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of events, newest first."""

    object: Literal["list"] = "list"
    data: list[FineTuningEvent]
    has_more: bool


class FineTuningCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a job had trained after an epoch, as a model; metrics that were not measured at its step are null."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics


class CheckpointMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a checkpoint, under OpenAI's names."""

    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class FineTuningCheckpointList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of checkpoints, newest first."""

    object: Literal["list"] = "list"
    data: list[FineTuningCheckpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool
