"""`/v1/batches`: have the requests of a file answered behind all others, as OpenAI has it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, cast

import msgspec
from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.request.fields import check_fields
from tunery.gateway.api.schemas.batches import (
    BatchCreate,
    BatchError,
    BatchErrors,
    BatchList,
    BatchObject,
    BatchUsage,
    ReasoningTokens,
    RequestCounts,
)
from tunery.gateway.api.schemas.responses import CachedTokens
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import INFER, SCOPE
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.records import Batch

__all__ = ["cancel_batch", "create_batch", "list_batches", "show_batch"]

MAX_ID = 100
"""Characters of an id."""


@post(
    "/v1/batches",
    operation_id="createBatch",
    summary="Have the requests of a file answered",
    status_code=200,
    responses=error_responses(400, 413, 415, 500),
    tags=["batches"],
    opt={SCOPE: INFER},
)
async def create_batch(
    data: JSONBody[BatchCreate],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> BatchObject:
    """Queue a batch. Its file is read and checked after the answer."""
    await check_fields(request, BatchCreate)
    _check_file(data.input_file_id, gateway, principal)
    expiry = data.output_expires_after
    batch = await asyncio.to_thread(
        gateway.registry.batches.submit,
        tenant=principal.tenant,
        adapters=principal.adapters,
        key=principal.key,
        endpoint=data.endpoint,
        input_file=data.input_file_id,
        details={"metadata": data.metadata},
        output_expires_after=None if expiry is None else float(expiry.seconds),
    )
    return _object(batch)


@get(
    "/v1/batches",
    operation_id="listBatches",
    summary="List batches",
    responses=error_responses(400, 404, 500),
    tags=["batches"],
    opt={SCOPE: INFER},
)
async def list_batches(
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    after: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
) -> BatchList:
    """List batches, newest first."""
    try:
        batches, more = gateway.registry.batches.page(tenant=principal.tenant, after=after, limit=limit)
    except NotFound as error:
        raise _no_batch(after or "", param="after") from error
    data = [_object(batch) for batch in batches]
    return BatchList(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=more
    )


@get(
    "/v1/batches/{batch_id:str}",
    operation_id="retrieveBatch",
    summary="Describe a batch",
    responses=error_responses(400, 404, 500),
    tags=["batches"],
    opt={SCOPE: INFER},
)
async def show_batch(
    batch_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> BatchObject:
    """Describe a batch; `request_counts` say how far it is."""
    return _object(_find(batch_id, gateway, principal))


@post(
    "/v1/batches/{batch_id:str}/cancel",
    operation_id="cancelBatch",
    summary="Stop a batch",
    status_code=200,
    responses=error_responses(400, 404, 500),
    tags=["batches"],
    opt={"no_body": True, SCOPE: INFER},
)
async def cancel_batch(
    batch_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> BatchObject:
    """Stop a batch; what has been answered until then is kept."""
    _find(batch_id, gateway, principal)
    return _object(await asyncio.to_thread(gateway.registry.batches.cancel, batch_id, tenant=principal.tenant))


def _check_file(file_id: str, gateway: Gateway, principal: Principal) -> None:
    """Raise InvalidInput unless this is a file of requests."""
    try:
        file = gateway.registry.data_files.get(file_id, tenant=principal.tenant)
    except NotFound as error:
        raise InvalidInput(
            f"invalid input_file_id: {file_id[:80]}", code="file_not_found", param="input_file_id"
        ) from error
    if file.purpose != "batch":
        raise InvalidInput(
            f"{file_id} was uploaded for {file.purpose!r}; upload it with the purpose 'batch'",
            code="invalid_file_purpose",
            param="input_file_id",
        )


def _find(batch_id: str, gateway: Gateway, principal: Principal) -> Batch:
    if len(batch_id) > MAX_ID:
        raise InvalidInput(f"no id of a batch has {len(batch_id)} characters", param="id")
    try:
        return gateway.registry.batches.get(batch_id, tenant=principal.tenant)
    except NotFound as error:
        raise _no_batch(batch_id) from error


def _no_batch(batch_id: str, param: str = "id") -> NotFound:
    """In OpenAI's words."""
    return NotFound(f"No batch found with id '{batch_id[:80]}'.", param=param)


def _object(batch: Batch) -> BatchObject:
    counts, errors = batch.counts, batch.errors
    times = {f"{state}_at": int(at) for state, at in batch.times.items()}
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model,
        errors=None if errors is None else BatchErrors(data=msgspec.convert(list(errors), list[BatchError])),
        input_file_id=batch.input_file,
        status=cast("Any", batch.state),
        output_file_id=batch.output_file,
        error_file_id=batch.error_file,
        created_at=int(batch.created_at),
        in_progress_at=times.get("in_progress_at"),
        expires_at=int(batch.expires_at),
        finalizing_at=times.get("finalizing_at"),
        completed_at=times.get("completed_at"),
        failed_at=times.get("failed_at"),
        expired_at=times.get("expired_at"),
        cancelling_at=times.get("cancelling_at"),
        cancelled_at=times.get("cancelled_at"),
        request_counts=RequestCounts(total=counts.total, completed=counts.completed, failed=counts.failed),
        usage=BatchUsage(
            input_tokens=counts.input_tokens,
            input_tokens_details=CachedTokens(counts.cached_tokens),
            output_tokens=counts.output_tokens,
            output_tokens_details=ReasoningTokens(),
            total_tokens=counts.input_tokens + counts.output_tokens,
        ),
        metadata=(batch.details or {}).get("metadata"),
    )
