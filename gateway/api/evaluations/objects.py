"""Runs and results of rows as OpenAI's clients see them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from tunery.gateway.api.schemas.evals import (
    CriterionResult,
    ModelUsage,
    OutputItem,
    ResultCounts,
    Run,
    RunDetails,
    RunError,
)
from tunery.plugins.evals.plan import RunPlan
from tunery.plugins.evals.results import Answer, ItemResult, TokenUsage
from tunery.plugins.evals.statistics import RunSummary
from tunery.registry.evals.records import EvalItem, EvalRun

__all__ = ["item_id", "item_object", "item_position", "run_object"]

_ITEM = re.compile(r"outputitem_(\w{1,64})_(\d{1,9})")


def run_object(run: EvalRun, counts: Mapping[str, int]) -> Run:
    """A run; `counts` are its rows so far by state."""
    plan = msgspec.convert(run.plan, RunPlan)
    summary = None if run.summary is None else msgspec.convert(run.summary, RunSummary)
    model, *others = plan.models
    return Run(
        id=run.id,
        eval_id=run.eval,
        created_at=int(run.created_at),
        status=run.state,
        name=run.name,
        model=model.name,
        data_source=run.request,
        result_counts=ResultCounts(
            errored=counts.get("error", 0),
            failed=counts.get("fail", 0),
            passed=counts.get("pass", 0),
            total=sum(counts.values()),
        ),
        per_model_usage=[] if summary is None else _usages(summary),
        per_testing_criteria_results=[] if summary is None else _criteria(summary),
        error=None if run.error is None else RunError(code=run.code or "failed", message=run.error),
        metadata=run.details,
        tunery=RunDetails(
            model=model.reference,
            against=others[0].reference if others else None,
            rows=run.row_count,
            summary=run.summary,
        ),
    )


def item_object(item: EvalItem, run: EvalRun) -> OutputItem:
    """The result of a row."""
    plan = msgspec.convert(run.plan, RunPlan)
    result = msgspec.convert(item.data, ItemResult)
    answer, *others = result.answers
    against = {"results": _results(others[0]), "sample": _sample(others[0], result, plan)} if others else None
    return OutputItem(
        id=item_id(run.id, item.position),
        created_at=int(item.created_at),
        eval_id=run.eval,
        run_id=run.id,
        datasource_item=result.item,
        datasource_item_id=item.position,
        status=item.state,
        results=_results(answer),
        sample=_sample(answer, result, plan),
        tunery={"line": result.line, "against": against},
    )


def item_id(run_id: str, position: int) -> str:
    """The id of a run's row."""
    return f"outputitem_{run_id.removeprefix('evalrun_')}_{position}"


def item_position(text: str, run_id: str) -> int | None:
    """The position of the row that an id means; None for an id that is not of this run."""
    match = _ITEM.fullmatch(text)
    return int(match[2]) if match and item_id(run_id, int(match[2])) == text else None


def _results(answer: Answer) -> list[dict[str, Any]]:
    """What the graders say; without a score it is 0, as OpenAI's has to be a number, and `error` says why."""
    results = []
    for score in answer.scores:
        fields = {"name": score.name, "type": score.type, "score": score.score or 0.0, "passed": score.passed}
        more = {"sample": score.sample, "note": score.note, "error": score.error}
        results.append(fields | {name: value for name, value in more.items() if value is not None})
    return results


def _sample(answer: Answer, result: ItemResult, plan: RunPlan) -> dict[str, Any]:
    sampling, usage = plan.sampling, answer.usage
    return {
        "model": answer.model,
        "input": [{"role": each["role"], "content": each.get("content") or ""} for each in result.input],
        "output": [] if answer.text is None else [{"role": "assistant", "content": answer.text}],
        "finish_reason": answer.finish_reason,
        "error": None if answer.error is None else msgspec.to_builtins(answer.error),
        "usage": {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "cached_tokens": usage.cached,
            "total_tokens": usage.prompt + usage.completion,
        },
        "temperature": sampling.get("temperature"),
        "top_p": sampling.get("top_p"),
        "seed": sampling.get("seed"),
        "max_completion_tokens": sampling.get("max_completion_tokens"),
    }


def _usages(summary: RunSummary) -> list[ModelUsage]:
    """The tokens of the models and of the judges; one that is both counts once."""
    usages: dict[str, TokenUsage] = {}
    named = [(model.name, model.usage) for model in summary.models]
    for name, usage in [*named, *summary.judges.items()]:
        usages[name] = usages.get(name, TokenUsage()) + usage
    return [
        ModelUsage(
            model_name=name,
            invocation_count=usage.requests,
            prompt_tokens=usage.prompt,
            completion_tokens=usage.completion,
            cached_tokens=usage.cached,
            total_tokens=usage.prompt + usage.completion,
        )
        for name, usage in usages.items()
    ]


def _criteria(summary: RunSummary) -> list[CriterionResult]:
    return [
        CriterionResult(testing_criteria=grader.name, passed=grader.passed, failed=grader.failed + grader.errored)
        for grader in summary.models[0].graders
    ]
