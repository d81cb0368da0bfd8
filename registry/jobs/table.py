"""The table of jobs: add, find, list, and record how one ended."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Select, insert, select, update

from tunery.registry.errors import NotFound, near
from tunery.registry.records import Job
from tunery.registry.storage import schema
from tunery.registry.storage.mapping import to_job
from tunery.registry.webhooks import events

__all__ = ["ENDED", "Filter", "add", "find", "find_by_key", "list_all", "list_running", "page", "set_state"]

ENDED = frozenset({"succeeded", "failed", "cancelled"})
"""States in which a job stays."""


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to list: those of a tenant, after a job (by id), with these entries of the client's metadata.

    `metadata` of None selects jobs without any; an empty one selects all.
    """

    tenant: str | None = None
    after: str | None = None
    metadata: dict[str, str] | None = {}
    queued_only: bool = False


def add(connection: Connection, job: Job, *, idempotency_key: str | None = None) -> None:
    """Record a new job."""
    connection.execute(insert(schema.jobs).values(**_to_row(job), idempotency_key=idempotency_key))


def _to_row(job: Job) -> dict[str, Any]:
    """A job as the values of its row."""
    return msgspec.structs.asdict(job) | {"request": msgspec.to_builtins(job.request)}


def set_state(
    connection: Connection,
    job_id: str,
    state: str,
    *,
    version: int | None,
    error: str | None,
    at: float,
    code: str | None = None,
) -> Job:
    """Record a job's new state, the number of the version it published or why it failed, at a time in Unix seconds.

    The end of a queued job is also an event for webhooks.
    """
    values: dict[str, Any] = {"state": state, "version": version, "error": error, "code": code, "updated_at": at}
    if state != "running":
        values |= {"wanted": None, "owner": None, "lease_until": None, "waiting": None}
    if state in ENDED:
        values["finished_at"] = at
    connection.execute(update(schema.jobs).where(schema.jobs.c.id == job_id).values(**values))
    job = find(connection, job_id)
    if state in ENDED and job.request is not None:
        events.append(connection, f"fine_tuning.job.{state}", {"id": job_id}, at=at)
    return job


def find(connection: Connection, job_id: str) -> Job:
    """A job by id; raise NotFound, with the ids that look like it."""
    row = connection.execute(_query().where(schema.jobs.c.id == job_id)).first()
    if row is None:
        ids = connection.scalars(select(schema.jobs.c.id)).all()
        raise NotFound(f"no job has the id {job_id!r}: {near(job_id, ids)}")
    return to_job(row)


def find_by_key(connection: Connection, tenant: str, key: str) -> Job | None:
    """The job that a tenant submitted with this idempotency key."""
    column = schema.jobs.c
    row = connection.execute(_query().where(column.tenant == tenant, column.idempotency_key == key)).first()
    return None if row is None else to_job(row)


def list_all(connection: Connection) -> list[Job]:
    """All jobs, newest first."""
    return [to_job(row) for row in connection.execute(_newest_first(_query()))]


def list_running(connection: Connection) -> list[Job]:
    """All jobs that run, newest first."""
    return [to_job(row) for row in connection.execute(_newest_first(_query().where(schema.jobs.c.state == "running")))]


def page(connection: Connection, wanted: Filter, *, limit: int) -> tuple[list[Job], bool]:
    """Up to `limit` jobs, newest first, and whether there are more; raise NotFound for an unknown `after`."""
    column, query = schema.jobs.c, _query()
    if wanted.tenant is not None:
        query = query.where(column.tenant == wanted.tenant)
    if wanted.queued_only:
        query = query.where(column.request.is_not(None))
    if wanted.after is not None:
        last = find(connection, wanted.after)
        earlier = (column.created_at == last.created_at) & (column.id < last.id)
        query = query.where((column.created_at < last.created_at) | earlier)
    found: list[Job] = []
    for row in connection.execute(_newest_first(query)):
        job = to_job(row)
        if _has_metadata(job, wanted.metadata):
            found.append(job)
            if len(found) > limit:
                return found[:limit], True
    return found, False


def _has_metadata(job: Job, wanted: dict[str, str] | None) -> bool:
    kept = (job.details or {}).get("metadata") or {}
    return not kept if wanted is None else wanted.items() <= kept.items()


def _query() -> Select[Any]:
    return select(*(column for column in schema.jobs.c if column.name != "idempotency_key"))


def _newest_first(query: Select[Any]) -> Select[Any]:
    return query.order_by(schema.jobs.c.created_at.desc(), schema.jobs.c.id.desc())
