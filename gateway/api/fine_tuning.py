"""`/v1/fine_tuning/jobs`: create, list, follow and stop training jobs, as OpenAI has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.jobs.create import plan
from tunery.gateway.api.jobs.presentation import checkpoint_object, event_number, event_object, job_object
from tunery.gateway.api.jobs.results import result_files
from tunery.gateway.api.jobs.training import check_method
from tunery.gateway.api.request.fields import check_fields
from tunery.gateway.api.schemas.fine_tuning import (
    FineTuningCheckpointList,
    FineTuningEventList,
    FineTuningJob,
    FineTuningJobList,
    JobCreate,
)
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.limits.training import check_compute, job_limits
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import SCOPE, TRAIN
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.jobs.history import Note
from tunery.registry.jobs.job_queue import new_id
from tunery.registry.jobs.queue import Wanted
from tunery.registry.jobs.table import ENDED, Filter
from tunery.registry.records import Job

__all__ = [
    "cancel_job",
    "create_job",
    "list_checkpoints",
    "list_events",
    "list_jobs",
    "pause_job",
    "resume_job",
    "show_job",
]

MAX_ID = 100
"""Characters of an id."""
MAX_KEY = 255
"""Characters of an Idempotency-Key."""
POLL_SECONDS = 0.2
"""Seconds between looks at whether a followed job has new events."""
PAGE = 500
_ERRORS = error_responses(400, 404, 500)
Limit = Annotated[int, QueryParameter(ge=1, le=1000)]


@post(
    "/v1/fine_tuning/jobs",
    operation_id="createFineTuningJob",
    summary="Train a version from an uploaded file",
    status_code=200,
    responses=error_responses(400, 413, 415, 429, 500),
    tags=["fine-tuning"],
    opt={SCOPE: TRAIN},
)
async def create_job(
    data: JSONBody[JobCreate],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> FineTuningJob:
    """Queue a job. A retry with the same `Idempotency-Key` header returns the job that the first one made."""
    check_method(data)
    await check_fields(request, JobCreate)
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= MAX_KEY:
        raise InvalidInput(f"Idempotency-Key has 1 to {MAX_KEY} characters", param="Idempotency-Key")
    job_id = new_id()
    planned = await asyncio.to_thread(
        plan,
        data,
        principal=principal,
        job_id=job_id,
        served=gateway.resolver.base,
        registry=gateway.registry,
        plugins=gateway.plugins,
        settings=gateway.jobs,
    )
    files = [f"training file: {data.training_file}"]
    if data.validation_file:
        files.append(f"validation file: {data.validation_file}")
    notes = [
        Note(kind="created", message=f"Created fine-tuning job: {job_id}"),
        Note(kind="validating", message=f"Validating {' and '.join(files)}"),
        Note(kind="queued", message="Files validated, moving job to queued state"),
    ]
    with gateway.limiter.counting():
        await asyncio.to_thread(_check_compute, gateway, principal)
        job = await asyncio.to_thread(
            gateway.registry.queue.submit,
            planned.request,
            tenant=principal.tenant,
            priority=planned.priority,
            details=planned.details,
            idempotency_key=key,
            job_id=job_id,
            limits=job_limits(gateway.limiter.book, principal),
            notes=notes,
        )
    return await _object(job, gateway, principal)


@get(
    "/v1/fine_tuning/jobs",
    operation_id="listPaginatedFineTuningJobs",
    summary="List jobs",
    responses=_ERRORS,
    tags=["fine-tuning"],
    opt={SCOPE: TRAIN},
)
async def list_jobs(
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
    after: FromQuery[str | None] = None,
    limit: Limit = 20,
) -> FineTuningJobList:
    """List jobs, newest first; `metadata[key]=value` selects those with that entry, `metadata=null` those without any."""
    wanted = Filter(tenant=principal.tenant, after=after, metadata=_metadata(request), queued_only=True)
    try:
        jobs, more = gateway.registry.queue.page(wanted, limit=limit)
    except NotFound as error:
        raise _no_job(after or "", param="after") from error
    return FineTuningJobList(data=[await _object(job, gateway, principal) for job in jobs], has_more=more)


@get(
    "/v1/fine_tuning/jobs/{job_id:str}",
    operation_id="retrieveFineTuningJob",
    summary="Describe a job",
    responses=_ERRORS,
    tags=["fine-tuning"],
    opt={SCOPE: TRAIN},
)
async def show_job(
    job_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> FineTuningJob:
    """Describe a job."""
    return await _object(_find(job_id, gateway, principal), gateway, principal)


@post(
    "/v1/fine_tuning/jobs/{job_id:str}/cancel",
    operation_id="cancelFineTuningJob",
    summary="Stop a job",
    status_code=200,
    responses=_ERRORS,
    tags=["fine-tuning"],
    opt={"no_body": True, SCOPE: TRAIN},
)
async def cancel_job(
    job_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> FineTuningJob:
    """Stop a job, for good. One that runs stops within a step or two."""
    return await _ask(job_id, "cancel", gateway, principal)


@post(
    "/v1/fine_tuning/jobs/{job_id:str}/pause",
    operation_id="pauseFineTuningJob",
    summary="Pause a job",
    status_code=200,
    responses=_ERRORS,
    tags=["fine-tuning"],
    opt={"no_body": True, SCOPE: TRAIN},
)
async def pause_job(
    job_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> FineTuningJob:
    """Stop a job after its current step, with a checkpoint."""
    return await _ask(job_id, "pause", gateway, principal)


@post(
    "/v1/fine_tuning/jobs/{job_id:str}/resume",
    operation_id="resumeFineTuningJob",
    summary="Go on with a job that was paused or has failed",
    status_code=200,
    responses=error_responses(400, 404, 429, 500),
    tags=["fine-tuning"],
    opt={"no_body": True, SCOPE: TRAIN},
)
async def resume_job(
    job_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> FineTuningJob:
    """Queue a job again that was paused or has failed; it goes on from its checkpoint, or from the start where there is none."""
    _find(job_id, gateway, principal)
    with gateway.limiter.counting():
        await asyncio.to_thread(_check_compute, gateway, principal)
        limits = job_limits(gateway.limiter.book, principal)
        job = await asyncio.to_thread(gateway.registry.queue.resume, job_id, limits=limits)
    return await _object(job, gateway, principal)


@get(
    "/v1/fine_tuning/jobs/{job_id:str}/events",
    operation_id="listFineTuningEvents",
    summary="List or follow a job's events",
    responses=_ERRORS
    | {
        200: ResponseSpec(
            FineTuningEventList,
            description="A page of events; with `stream`, all of them as server-sent events.",
            generate_examples=False,
        )
    },
    tags=["fine-tuning"],
    opt={SCOPE: TRAIN},
)
async def list_events(
    job_id: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
    after: FromQuery[str | None] = None,
    limit: Limit = 20,
    stream: FromQuery[bool] = False,
) -> Response[FineTuningEventList] | Stream:
    """List events, newest first. With `stream` they come as server-sent events, oldest first, until the job has ended;
    `Last-Event-ID` is the id of the last one that the client has."""
    job = _find(job_id, gateway, principal)
    number = None if after is None else _number(after, job, gateway, "after")
    if stream:
        last = request.headers.get("last-event-id")
        return _follow(job, _number(last, job, gateway, "Last-Event-ID") if last else number or 0, gateway)
    events, more = gateway.registry.queue.events_before(job_id, number, limit=limit)
    return Response(FineTuningEventList(data=[event_object(event, job) for event in events], has_more=more))


@get(
    "/v1/fine_tuning/jobs/{job_id:str}/checkpoints",
    operation_id="listFineTuningJobCheckpoints",
    summary="List a job's checkpoints",
    responses=_ERRORS,
    tags=["fine-tuning"],
    opt={SCOPE: TRAIN},
)
async def list_checkpoints(
    job_id: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    after: FromQuery[str | None] = None,
    limit: Limit = 10,
) -> FineTuningCheckpointList:
    """List the models that a job made on its way, newest first: one for each of its last epochs."""
    kept = gateway.registry.checkpoints.of_job(_find(job_id, gateway, principal).id)
    ids = [checkpoint.id for checkpoint in kept]
    if after is not None and after not in ids:
        raise NotFound(f"{job_id} has no checkpoint {after[:80]!r}", code="checkpoint_not_found", param="after")
    start = 0 if after is None else ids.index(after) + 1
    page = [checkpoint_object(checkpoint) for checkpoint in kept[start : start + limit]]
    return FineTuningCheckpointList(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=start + limit < len(kept),
    )


def _check_compute(gateway: Gateway, principal: Principal) -> None:
    check_compute(gateway.registry.usage, gateway.limiter.book, principal, now=gateway.usage.now())


def _follow(job: Job, number: int, gateway: Gateway) -> Stream:
    """The events behind event `number`, and those to come."""

    async def body() -> AsyncGenerator[bytes, None]:
        seen, changes, quiet = number, -1, 0.0
        while not gateway.draining:
            latest = gateway.registry.changes()
            if latest != changes:
                # Before the events, so that one that comes meanwhile is not missed.
                state = gateway.registry.job(job.id).state
                changes = latest
                while events := await asyncio.to_thread(gateway.registry.queue.events_after, job.id, seen, limit=PAGE):
                    seen, quiet = events[-1].number, 0.0
                    for event in events:
                        shown = event_object(event, job)
                        yield b"id: " + shown.id.encode() + b"\ndata: " + msgspec.json.encode(shown) + b"\n\n"
                if state in ENDED or state == "paused":
                    yield b"data: [DONE]\n\n"
                    return
            await asyncio.sleep(POLL_SECONDS)
            quiet += POLL_SECONDS
            if quiet >= 10:
                yield b": waiting\n\n"
                quiet = 0.0

    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return Stream(body(), media_type="text/event-stream", headers=headers)


async def _object(job: Job, gateway: Gateway, principal: Principal) -> FineTuningJob:
    files = await asyncio.to_thread(result_files, gateway.registry, job) if job.state == "succeeded" else []
    return job_object(job, result_files=files, tenant=principal.tenant)


async def _ask(job_id: str, wanted: Wanted, gateway: Gateway, principal: Principal) -> FineTuningJob:
    _find(job_id, gateway, principal)
    return await _object(await asyncio.to_thread(gateway.registry.queue.request, job_id, wanted), gateway, principal)


def _find(job_id: str, gateway: Gateway, principal: Principal) -> Job:
    """A queued job of the tenant; raise NotFound in OpenAI's words."""
    if len(job_id) > MAX_ID:
        raise InvalidInput(f"no id of a job has {len(job_id)} characters", param="fine_tune_id")
    try:
        job = gateway.registry.job(job_id)
    except NotFound as error:
        raise _no_job(job_id) from error
    if job.request is None or job.tenant != principal.tenant:
        raise _no_job(job_id)
    return job


def _no_job(job_id: str, param: str = "fine_tune_id") -> NotFound:
    return NotFound(f"Could not find fine tune: {job_id[:80]}", code="fine_tune_not_found", param=param)


def _number(event_id: str, job: Job, gateway: Gateway, param: str) -> int:
    """The number of an event of the job, which `param` names by its id."""
    number = event_number(event_id, job)
    if number is None:
        raise InvalidInput(f"{event_id[:80]!r} is not the id of an event of {job.id}", param=param)
    try:
        gateway.registry.queue.events_before(job.id, number, limit=1)
    except NotFound as error:
        raise NotFound(error.message, code=error.code, param=param) from error
    return number


def _metadata(request: Request[Any, Any, Any]) -> dict[str, str] | None:
    """The filter in `metadata[key]=value`; None for `metadata=null`."""
    if request.query_params.get("metadata") == "null":
        return None
    return {
        name[len("metadata[") : -1]: str(value)
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
