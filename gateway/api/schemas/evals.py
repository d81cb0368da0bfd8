"""The bodies of the evaluation endpoints, as OpenAI has them. `tunery` is the extension everywhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "DeletedEval",
    "DeletedRun",
    "Eval",
    "EvalChange",
    "EvalCreate",
    "EvalList",
    "ModelUsage",
    "OutputItem",
    "OutputItemList",
    "Run",
    "RunCreate",
    "RunList",
]

Name = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class EvalCreate(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/evals`: graders, and the schema of the rows they are for."""

    data_source_config: dict[str, Any]
    testing_criteria: list[dict[str, Any]]
    name: Name | None = None
    metadata: Metadata | None = None


class EvalChange(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/evals/{eval_id}`: another name, or other metadata."""

    name: Name | None = None
    metadata: Metadata | None = None


class Eval(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation."""

    id: str
    object: Literal["eval"] = "eval"
    created_at: int
    name: str
    data_source_config: dict[str, Any]
    testing_criteria: list[dict[str, Any]]
    metadata: dict[str, str] | None


class EvalList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of evaluations."""

    object: Literal["list"] = "list"
    data: list[Eval]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedEval(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a deletion."""

    eval_id: str
    object: Literal["eval.deleted"] = "eval.deleted"
    deleted: bool = True


class RunOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What OpenAI's API has no words for: the model to measure the run's `against`, on the same rows."""

    against: str | None = None


class RunCreate(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/evals/{eval_id}/runs`: the rows, the model, and what to ask it."""

    data_source: dict[str, Any]
    name: Name | None = None
    metadata: Metadata | None = None
    tunery: RunOptions | None = None


class RunError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a run, or an answer, failed."""

    code: str
    message: str


class ResultCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Rows so far by result; `passed` ones pass every grader."""

    errored: int
    failed: int
    passed: int
    total: int


class CriterionResult(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows one grader passed."""

    testing_criteria: str
    passed: int
    failed: int


class ModelUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The requests to a model and their tokens."""

    model_name: str
    invocation_count: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    total_tokens: int


class RunDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What OpenAI's run object has no fields for.

    `model` and `against` are the exact versions that are measured, `summary` the means, intervals and differences once
    the run is complete.
    """

    model: str
    against: str | None
    rows: int
    summary: dict[str, Any] | None


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run of an evaluation."""

    id: str
    object: Literal["eval.run"] = "eval.run"
    eval_id: str
    created_at: int
    status: Literal["queued", "in_progress", "completed", "failed", "canceled"]
    name: str
    model: str
    data_source: dict[str, Any]
    result_counts: ResultCounts
    per_model_usage: list[ModelUsage]
    per_testing_criteria_results: list[CriterionResult]
    error: RunError | None
    report_url: None = None
    metadata: dict[str, str] | None
    tunery: RunDetails


class RunList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of runs."""

    object: Literal["list"] = "list"
    data: list[Run]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedRun(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a deletion."""

    run_id: str
    object: Literal["eval.run.deleted"] = "eval.run.deleted"
    deleted: bool = True


class OutputItem(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one row. `tunery.against` has the `results` and the `sample` of the model that it is compared with."""

    id: str
    object: Literal["eval.run.output_item"] = "eval.run.output_item"
    created_at: int
    eval_id: str
    run_id: str
    datasource_item: dict[str, Any]
    datasource_item_id: int
    status: Literal["pass", "fail", "error"]
    results: list[dict[str, Any]]
    sample: dict[str, Any]
    tunery: dict[str, Any]


class OutputItemList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of rows."""

    object: Literal["list"] = "list"
    data: list[OutputItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
