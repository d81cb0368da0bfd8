"""`/v1/evals`: create, list, rename and delete evaluations, as OpenAI has it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from tunery.gateway.api.evaluations.find import find_eval
from tunery.gateway.api.evaluations.planning import check_outputs
from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.request.fields import check_fields
from tunery.gateway.api.schemas.evals import DeletedEval, Eval, EvalChange, EvalCreate, EvalList
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import DATA, SCOPE
from tunery.plugins.evals.graders import read_graders
from tunery.plugins.evals.json_validity import JsonValidity
from tunery.registry.errors import InvalidInput
from tunery.registry.evals.records import Evaluation

__all__ = ["change_eval", "create_eval", "delete_eval", "list_evals", "show_eval"]

_ERRORS = error_responses(400, 404, 500)
Limit = Annotated[int, QueryParameter(ge=1, le=100)]
Order = FromQuery[Literal["asc", "desc"]]


@post(
    "/v1/evals",
    operation_id="createEval",
    summary="Create an evaluation",
    status_code=201,
    responses=error_responses(400, 413, 415, 500),
    tags=["evals"],
    opt={SCOPE: DATA},
)
async def create_eval(
    data: JSONBody[EvalCreate],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> Eval:
    """Create an evaluation: graders, whose templates name fields of rows and of answers."""
    await check_fields(request, EvalCreate)
    source = _source(data.data_source_config)
    await asyncio.to_thread(_check, source, data.testing_criteria, gateway)
    made = await asyncio.to_thread(
        gateway.registry.evals.create,
        tenant=principal.tenant,
        name=data.name or "",
        source=source,
        criteria=data.testing_criteria,
        details=data.metadata,
    )
    return _object(made)


@get(
    "/v1/evals",
    operation_id="listEvals",
    summary="List evaluations",
    responses=_ERRORS,
    tags=["evals"],
    opt={SCOPE: DATA},
)
async def list_evals(
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    after: FromQuery[str | None] = None,
    limit: Limit = 20,
    order: Order = "asc",
    order_by: FromQuery[Literal["created_at", "updated_at"]] = "created_at",
) -> EvalList:
    """List evaluations, oldest first unless `order` is desc."""
    found, more = gateway.registry.evals.page(
        tenant=principal.tenant, after=after, limit=limit, ascending=order == "asc", by=order_by
    )
    data = [_object(each) for each in found]
    return EvalList(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=more
    )


@get(
    "/v1/evals/{eval_id:str}",
    operation_id="getEval",
    summary="Describe an evaluation",
    responses=_ERRORS,
    tags=["evals"],
    opt={SCOPE: DATA},
)
async def show_eval(
    eval_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> Eval:
    """Describe an evaluation."""
    return _object(find_eval(eval_id, gateway, principal))


@post(
    "/v1/evals/{eval_id:str}",
    operation_id="updateEval",
    summary="Rename an evaluation",
    status_code=200,
    responses=error_responses(400, 404, 413, 415, 500),
    tags=["evals"],
    opt={SCOPE: DATA},
)
async def change_eval(
    eval_id: FromPath[str],
    data: JSONBody[EvalChange],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> Eval:
    """Give an evaluation another name or other metadata. Its graders stay what they are."""
    await check_fields(request, EvalChange)
    evaluation = find_eval(eval_id, gateway, principal)
    given = {"name": data.name, "details": data.metadata}
    values = {name: value for name, value in given.items() if value is not None}
    if not values:
        return _object(evaluation)
    return _object(await asyncio.to_thread(gateway.registry.evals.change, eval_id, values, tenant=principal.tenant))


@delete(
    "/v1/evals/{eval_id:str}",
    operation_id="deleteEval",
    summary="Delete an evaluation and its runs",
    status_code=200,
    responses=_ERRORS,
    tags=["evals"],
    opt={SCOPE: DATA},
)
async def delete_eval(
    eval_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> DeletedEval:
    """Delete an evaluation and its runs, which end. What they measured of versions stays with the versions."""
    find_eval(eval_id, gateway, principal)
    await asyncio.to_thread(gateway.registry.evals.delete, eval_id, tenant=principal.tenant)
    return DeletedEval(eval_id=eval_id)


def _source(config: dict[str, Any]) -> dict[str, Any]:
    """The data_source_config as it is kept; raise InvalidInput for one that is not of rows."""
    kind = config.get("type")
    if kind in ("logs", "stored_completions"):
        raise InvalidInput(
            f"data_source_config.type {kind!r} is not supported: answers are not kept here; use custom",
            code="unsupported_parameter",
            param="data_source_config",
        )
    if kind != "custom":
        raise InvalidInput(f"data_source_config.type is {str(kind)[:80]!r}; it is custom", param="data_source_config")
    schema = config.get("item_schema")
    if schema is not None and not isinstance(schema, dict):
        raise InvalidInput("data_source_config.item_schema must be a JSON schema", param="data_source_config")
    unknown = sorted(set(config) - {"type", "item_schema", "include_sample_schema"})
    if unknown:
        raise InvalidInput(
            f"data_source_config.{unknown[0][:80]} is not supported; leave it out",
            code="unsupported_parameter",
            param="data_source_config",
        )
    return {"type": "custom", "item_schema": schema}


def _check(source: dict[str, Any], criteria: list[dict[str, Any]], gateway: Gateway) -> None:
    """Raise InvalidInput for a schema or a grader that is not valid."""
    if source["item_schema"] is not None:
        JsonValidity(source["item_schema"], param="data_source_config.item_schema")
    graders = read_graders(criteria)
    if (ready := gateway.engine.ready) is not None:
        check_outputs({}, graders, context=ready.context_length)


def _object(evaluation: Evaluation) -> Eval:
    item_schema = evaluation.source.get("item_schema")
    both = {"type": "object", "properties": {"item": item_schema or {"type": "object"}}, "required": ["item"]}
    return Eval(
        id=evaluation.id,
        created_at=int(evaluation.created_at),
        name=evaluation.name,
        data_source_config={"type": "custom", "schema": both},
        testing_criteria=evaluation.criteria,
        metadata=evaluation.details,
    )
