"""The queue: who may claim which job, for how long, and that only the last claimant's word counts.

A claim is a lease. Whoever holds it renews it with heartbeats; a job whose lease has run out is claimed again and goes
on from its checkpoint. Each claim has a fence, one higher than the last: everything a claimant writes is refused once
the job has another fence, so a worker that was believed dead and comes back can neither publish nor report.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Select, and_, func, select, update

from tunery.registry.errors import Conflict
from tunery.registry.jobs import history, table
from tunery.registry.jobs.history import Note
from tunery.registry.records import Job, JobRequest
from tunery.registry.storage import schema
from tunery.registry.storage.lapses import lapsed

__all__ = [
    "BODY_DIGEST",
    "Claim",
    "ClaimLimits",
    "Wanted",
    "beat",
    "claim",
    "release",
    "request",
    "require_claim",
    "require_files",
    "reserved",
    "resume",
    "submit",
]

Wanted = Literal["pause", "cancel"]
MAX_CRASHES = 5
"""Processes that may die one after the other, without completing a step, before the job fails."""

BODY_DIGEST = "body_sha256"
"""The entry of a job's details that says what its client asked for: one key of a client stands for one such digest."""


class Claim(msgspec.Struct, frozen=True):
    """The right to run a job until its lease ends; `fence` is the claim's number."""

    job: str
    fence: int


class ClaimLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker may claim: at most `per_tenant` running jobs of one tenant, none of the jobs in `without`, and none
    that is known to need more than `memory` bytes (None for any)."""

    per_tenant: int = 0
    memory: int | None = None
    without: Collection[str] = ()


def submit(connection: Connection, job: Job, *, idempotency_key: str | None = None) -> tuple[Job, bool]:
    """Add a job to the queue; returns it and whether it is new, which it is not where the key was used before.

    Raises Conflict (idempotency_key_reused) where the key was used for a job that is known to be another one.
    """
    if idempotency_key is not None:
        known = table.find_by_key(connection, job.tenant, idempotency_key)
        if known is not None:
            _require_same(known, job)
            return known, False
    table.add(connection, job, idempotency_key=idempotency_key)
    return job, True


def _require_same(known: Job, job: Job) -> None:
    before, now = ((each.details or {}).get(BODY_DIGEST) for each in (known, job))
    if before is not None and now is not None and before != now:
        raise Conflict(
            f"this Idempotency-Key was used for {known.id}, which was asked for with another body; take a new key for a "
            "new job",
            code="idempotency_key_reused",
            param="Idempotency-Key",
        )


def require_files(connection: Connection, request: JobRequest) -> None:
    """Raise Conflict (file_not_found) when a file of a job was deleted."""
    column = schema.data_files.c
    for ids, param in ((request.data, "training_file"), ((request.validation,), "validation_file")):
        wanted = [file for file in ids if file is not None]
        known = set(connection.scalars(select(column.id).where(column.id.in_(wanted))))
        if missing := [file for file in wanted if file not in known]:
            raise Conflict(
                f"{', '.join(missing)} was deleted meanwhile; upload it again, and create a new job with it",
                code="file_not_found",
                param=param,
            )


def claim(connection: Connection, *, owner: str, at: float, lease: float, limits: ClaimLimits) -> Job | None:
    """Claim the next job for `lease` seconds, or None when there is none that may be.

    The highest priority goes first; then the tenant with the fewest running jobs, then the one that has waited longest
    since its last claim, then the oldest job.
    """
    _settle_lost(connection, at, lease)
    row = connection.execute(_next(at, limits)).first()
    if row is None:
        return None
    column = schema.jobs.c
    values: dict[str, Any] = {
        "state": "running", "owner": owner, "fence": column.fence + 1, "lease_until": at + lease, "waiting": None,
        "started_at": func.coalesce(column.started_at, at), "updated_at": at,
    }  # fmt: skip
    connection.execute(update(schema.jobs).where(column.id == row.id).values(**values))
    return table.find(connection, row.id)


def _next(at: float, limits: ClaimLimits) -> Select[Any]:
    """The query for the job to claim."""
    job, other = schema.jobs.c, schema.jobs.alias("other").c
    running = (
        select(func.count()).where(other.tenant == job.tenant, other.state == "running", other.lease_until >= at)
    ).scalar_subquery()
    last = select(func.coalesce(func.max(other.started_at), 0.0)).where(other.tenant == job.tenant).scalar_subquery()
    query = (
        select(job.id)
        .where(job.request.is_not(None), job.state == "queued", job.id.not_in(list(limits.without)))
        .order_by(job.priority.desc(), running, last, job.created_at, job.id)
        .limit(1)
    )
    if limits.memory is not None:
        # A process that found too little memory has recorded what would do.
        query = query.where(func.coalesce(job.progress["needed_bytes"].as_float(), 0.0) <= limits.memory)
    return query.where(running < limits.per_tenant) if limits.per_tenant else query


def reserved(connection: Connection, owner: str) -> dict[str, int]:
    """The bytes that each running job of a worker was quoted to need; 0 before its quote."""
    column = schema.jobs.c
    query = select(column.id, column.progress).where(column.state == "running", column.owner == owner)
    return {row.id: int((row.progress or {}).get("peak_bytes", 0)) for row in connection.execute(query)}


def _settle_lost(connection: Connection, at: float, lease: float) -> None:
    """Queue the jobs whose lease has run out again, or end those that were asked to stop or that crash again and
    again."""
    column = schema.jobs.c
    lost = and_(column.request.is_not(None), column.state == "running", lapsed(column.lease_until, at=at, lease=lease))
    for job_id in connection.scalars(select(column.id).where(lost)).all():
        _crashed(connection, table.find(connection, job_id), at=at, waiting="the worker that ran it is gone")


def _crashed(connection: Connection, job: Job, *, at: float, waiting: str | None) -> None:
    """Queue a job again whose process died, or end it."""
    crashes = int((job.progress or {}).get("crashes", 0)) + 1
    if job.wanted == "cancel":
        _end(connection, job, "cancelled", Note(kind="cancelled", message="The job was cancelled"), at=at)
    elif job.wanted == "pause":
        _end(connection, job, "paused", Note(kind="paused", message="The job was paused"), at=at)
    elif crashes >= MAX_CRASHES:
        error = (
            f"{crashes} processes in a row died while they trained {job.id}, without completing a step; nothing was "
            f"published. The last one: {waiting}. See its process.log, and whether its machine has memory enough"
        )
        note = Note(level="error", kind="failed", message=error, data={"error": error, "code": "worker_lost"})
        _end(connection, job, "failed", note, at=at, error=error, code="worker_lost")
    else:
        reason = waiting or "its process died"
        note = Note(
            level="warn",
            kind="interrupted",
            message=f"The job was interrupted: {reason}. It goes on from its last checkpoint, or from the start",
            data={"reason": reason},
        )
        history.append(connection, job.id, [note], at=at)
        _queue_again(connection, job.id, at=at, waiting=waiting, progress=(job.progress or {}) | {"crashes": crashes})


def _queue_again(connection: Connection, job_id: str, *, at: float, waiting: str | None, **more: Any) -> None:
    values = {"state": "queued", "lease_until": None, "owner": None, "waiting": waiting, "updated_at": at} | more
    connection.execute(update(schema.jobs).where(schema.jobs.c.id == job_id).values(**values))


def _end(
    connection: Connection,
    job: Job,
    state: str,
    note: Note,
    *,
    at: float,
    error: str | None = None,
    code: str | None = None,
) -> Job:
    history.append(connection, job.id, [note], at=at)
    return table.set_state(connection, job.id, state, version=job.version, error=error, code=code, at=at)


def beat(connection: Connection, claim: Claim, *, at: float, lease: float) -> str | None:
    """Renew a claim; returns what the job is asked to do. Raises Conflict (claim_lost) when it is somebody else's."""
    job = require_claim(connection, claim)
    connection.execute(update(schema.jobs).where(schema.jobs.c.id == claim.job).values(lease_until=at + lease))
    return job.wanted


def release(connection: Connection, claim: Claim, *, at: float, waiting: str | None, crashed: bool) -> Job:
    """Give a job back to the queue; `waiting` says why it does not run now.

    A job whose process `crashed` too often without completing a step fails instead (worker_lost).
    """
    job = require_claim(connection, claim)
    if crashed:
        _crashed(connection, job, at=at, waiting=waiting)
    else:
        _queue_again(connection, claim.job, at=at, waiting=waiting)
    return table.find(connection, claim.job)


def request(connection: Connection, job_id: str, wanted: Wanted, *, at: float) -> Job:
    """Ask a job to pause or to stop. One that waits does so at once; one that runs when its process hears of it.

    Raises Conflict: job_ended for one that has ended, job_finishing for a pause when all steps are trained.
    """
    job = table.find(connection, job_id)
    if job.state in table.ENDED or (job.state == "paused" and wanted == "pause"):
        raise Conflict(f"{job_id} is {job.state} and cannot be {_past(wanted)}", code="job_ended")
    if job.state == "running":
        steps = (job.progress or {}).get("steps")
        if wanted == "pause" and steps and (job.progress or {}).get("step") == steps:
            raise Conflict(
                f"{job_id} has trained all of its {steps} steps, and is being checked and published: there is nothing left "
                "to pause. It can still be cancelled",
                code="job_finishing",
            )
        values = {"wanted": wanted, "updated_at": at}
        connection.execute(update(schema.jobs).where(schema.jobs.c.id == job_id).values(**values))
        return table.find(connection, job_id)
    state = _past(wanted)
    return _end(connection, job, state, Note(kind=state, message=f"The job was {state}"), at=at)


def resume(connection: Connection, job_id: str, *, at: float) -> Job:
    """Put a job that was paused or has failed back in the queue.

    Raises Conflict: not_paused for any other, file_not_found when it has not begun and its files are gone.
    """
    job = table.find(connection, job_id)
    if job.state not in ("paused", "failed") or job.request is None:
        raise Conflict(
            f"{job_id} is {job.state}; only a job that is paused or has failed can be resumed", code="not_paused"
        )
    if "parameters" not in (job.progress or {}):
        # One that has begun has its files in its own folder.
        require_files(connection, job.request)
    history.append(connection, job_id, [Note(kind="resumed", message="The job was resumed")], at=at)
    progress = (job.progress or {}) | {"crashes": 0}
    values = {"state": "queued", "error": None, "code": None, "finished_at": None, "wanted": None, "updated_at": at}
    connection.execute(update(schema.jobs).where(schema.jobs.c.id == job_id).values(**values, progress=progress))
    return table.find(connection, job_id)


def require_claim(connection: Connection, claim: Claim) -> Job:
    """The claimed job; raise Conflict (claim_lost) when the claim is not the job's last one, or the job has ended."""
    job = table.find(connection, claim.job)
    if job.fence != claim.fence or job.state != "running":
        raise Conflict(
            f"{claim.job} is no longer this worker's: its lease ran out or the job ended; nothing was changed",
            code="claim_lost",
        )
    return job


def _past(wanted: Wanted) -> str:
    return {"pause": "paused", "cancel": "cancelled"}[wanted]
