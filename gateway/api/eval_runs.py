"""`/v1/evals/{eval_id}/runs`: measure a model, or one against another, and read the results, as OpenAI has it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from tunery.gateway.api.evaluations.find import find_eval, find_run
from tunery.gateway.api.evaluations.objects import item_object, item_position, run_object
from tunery.gateway.api.evaluations.planning import plan_run
from tunery.gateway.api.evaluations.source import add_run, read_asked
from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.request.fields import check_fields
from tunery.gateway.api.schemas.evals import DeletedRun, OutputItem, OutputItemList, Run, RunCreate, RunList
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import DATA, SCOPE
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.evals.records import EvalRun

__all__ = [
    "cancel_run",
    "cancel_run_as_before",
    "create_run",
    "delete_run",
    "list_items",
    "list_runs",
    "show_item",
    "show_run",
]

_ERRORS = error_responses(400, 404, 500)
Limit = Annotated[int, QueryParameter(ge=1, le=100)]
Status = Literal["queued", "in_progress", "completed", "failed", "canceled"]
RUNS, RUN = "/v1/evals/{eval_id:str}/runs", "/v1/evals/{eval_id:str}/runs/{run_id:str}"


@post(
    RUNS,
    operation_id="createEvalRun",
    summary="Run an evaluation",
    status_code=201,
    responses=error_responses(400, 404, 413, 415, 500),
    tags=["evals"],
    opt={SCOPE: DATA},
)
async def create_run(
    eval_id: FromPath[str],
    data: JSONBody[RunCreate],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> Run:
    """Queue a run. Every row and every field of a template is checked before; models are answered behind other
    requests."""
    await check_fields(request, RunCreate)
    evaluation = find_eval(eval_id, gateway, principal)
    plan = plan_run(evaluation, read_asked(data), resolver=gateway.resolver, by=principal)
    return run_object(
        await asyncio.to_thread(add_run, data, evaluation, plan, gateway=gateway, principal=principal), {}
    )


@get(RUNS, operation_id="getEvalRuns", summary="List runs", responses=_ERRORS, tags=["evals"], opt={SCOPE: DATA})
async def list_runs(
    eval_id: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    after: FromQuery[str | None] = None,
    limit: Limit = 20,
    order: FromQuery[Literal["asc", "desc"]] = "asc",
    status: FromQuery[Status | None] = None,
) -> RunList:
    """List the runs of an evaluation, oldest first unless `order` is desc."""
    evaluation = find_eval(eval_id, gateway, principal)
    runs, more = gateway.registry.evals.runs(
        eval_id=evaluation.id, state=status, after=after, limit=limit, ascending=order == "asc"
    )
    data = [_object(run, gateway) for run in runs]
    return RunList(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=more
    )


@get(RUN, operation_id="getEvalRun", summary="Describe a run", responses=_ERRORS, tags=["evals"], opt={SCOPE: DATA})
async def show_run(
    eval_id: FromPath[str],
    run_id: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
) -> Run:
    """Describe a run; a completed one has its results in `tunery.summary`."""
    return _object(find_run(eval_id, run_id, gateway, principal)[1], gateway)


@post(
    f"{RUN}/cancel",
    operation_id="cancelEvalRun",
    summary="Stop a run",
    status_code=200,
    responses=_ERRORS,
    tags=["evals"],
    opt={"no_body": True, SCOPE: DATA},
)
async def cancel_run(
    eval_id: FromPath[str],
    run_id: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
) -> Run:
    """Stop a run, for good. Rows that are done keep their results."""
    return await _cancel(eval_id, run_id, gateway, principal)


@post(
    RUN,
    operation_id="cancelEvalRunByItself",
    summary="Stop a run, as older clients do",
    status_code=200,
    responses=_ERRORS,
    tags=["evals"],
    opt={"no_body": True, SCOPE: DATA},
)
async def cancel_run_as_before(
    eval_id: FromPath[str],
    run_id: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
) -> Run:
    """Stop a run, at the path that older clients of OpenAI's know."""
    return await _cancel(eval_id, run_id, gateway, principal)


async def _cancel(eval_id: str, run_id: str, gateway: Gateway, principal: Principal) -> Run:
    find_run(eval_id, run_id, gateway, principal)
    return _object(await asyncio.to_thread(gateway.registry.evals.cancel, run_id), gateway)


@delete(
    RUN,
    operation_id="deleteEvalRun",
    summary="Delete a run",
    status_code=200,
    responses=_ERRORS,
    tags=["evals"],
    opt={SCOPE: DATA},
)
async def delete_run(
    eval_id: FromPath[str],
    run_id: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
) -> DeletedRun:
    """Delete a run, which ends, and its results of rows. What it measured of versions stays with the versions."""
    find_run(eval_id, run_id, gateway, principal)
    await asyncio.to_thread(gateway.registry.evals.delete_run, run_id)
    return DeletedRun(run_id=run_id)


@get(
    f"{RUN}/output_items",
    operation_id="getEvalRunOutputItems",
    summary="List the results of rows",
    responses=_ERRORS,
    tags=["evals"],
    opt={SCOPE: DATA},
)
async def list_items(
    eval_id: FromPath[str],
    run_id: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    after: FromQuery[str | None] = None,
    limit: Limit = 20,
    order: FromQuery[Literal["asc", "desc"]] = "asc",
    status: FromQuery[Literal["pass", "fail", "error"] | None] = None,
) -> OutputItemList:
    """List the rows of a run that are done, in the order of the file unless `order` is desc."""
    _, run = find_run(eval_id, run_id, gateway, principal)
    place = None if after is None else _position(after, run, param="after")

    def page() -> tuple[list[OutputItem], bool]:
        items, more = gateway.registry.evals.items(
            run.id, state=status, after=place, limit=limit, ascending=order == "asc"
        )
        return [item_object(item, run) for item in items], more

    data, more = await asyncio.to_thread(page)
    return OutputItemList(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=more
    )


@get(
    f"{RUN}/output_items/{{output_item_id:str}}",
    operation_id="getEvalRunOutputItem",
    summary="Describe the result of a row",
    responses=_ERRORS,
    tags=["evals"],
    opt={SCOPE: DATA},
)
async def show_item(
    eval_id: FromPath[str],
    run_id: FromPath[str],
    output_item_id: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
) -> OutputItem:
    """Describe the result of a row."""
    _, run = find_run(eval_id, run_id, gateway, principal)
    position = _position(output_item_id, run, param="output_item_id")
    items, _ = gateway.registry.evals.items(run.id, after=position - 1, limit=1)
    if not items or items[0].position != position:
        raise _no_item(output_item_id, run, param="output_item_id")
    return item_object(items[0], run)


def _position(text: str, run: EvalRun, *, param: str) -> int:
    if len(text) > 200:
        raise InvalidInput(f"no id of a row has {len(text)} characters", param=param)
    position = item_position(text, run.id)
    if position is None:
        raise _no_item(text, run, param=param)
    return position


def _no_item(text: str, run: EvalRun, *, param: str) -> NotFound:
    return NotFound(f"there is no row {text[:80]} of {run.id}", code="output_item_not_found", param=param)


def _object(run: EvalRun, gateway: Gateway) -> Run:
    return run_object(run, gateway.registry.evals.counts(run.id))
