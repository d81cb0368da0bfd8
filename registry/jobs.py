"""Record the runs of trainers and their states."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, insert, select, update

from tunery.registry.errors import NotFound, near
from tunery.registry.records import Job
from tunery.registry.storage import schema
from tunery.registry.storage.mapping import to_job

__all__ = ["add", "find", "list_all", "set_state"]


def add(connection: Connection, job: Job) -> None:
    """Record a new job."""
    connection.execute(insert(schema.jobs).values(**msgspec.structs.asdict(job)))


def set_state(
    connection: Connection, job_id: str, state: str, *, version: int | None, error: str | None, at: float
) -> Job:
    """Record a job's new state, the number of the version it published or why it failed, at a time in Unix seconds."""
    job = schema.jobs.c
    values = {"state": state, "version": version, "error": error, "updated_at": at}
    connection.execute(update(schema.jobs).where(job.id == job_id).values(**values))
    return find(connection, job_id)


def find(connection: Connection, job_id: str) -> Job:
    """A job by id; raise NotFound, with the ids that look like it."""
    row = connection.execute(select(schema.jobs).where(schema.jobs.c.id == job_id)).first()
    if row is None:
        raise NotFound(f"no job has the id {job_id!r}: {near(job_id, [job.id for job in list_all(connection)])}")
    return to_job(row)


def list_all(connection: Connection) -> list[Job]:
    """All jobs, newest first."""
    rows = connection.execute(select(schema.jobs).order_by(schema.jobs.c.created_at.desc()))
    return [to_job(row) for row in rows]
