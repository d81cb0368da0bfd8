"""Count jobs, for monitoring."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, func, select

from tunery.registry.storage import schema

__all__ = ["STATES", "JobCounts", "count"]

STATES = ("queued", "running", "paused", "succeeded", "failed", "cancelled")


class JobCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs by state, failed ones by the code of their error, and how long the oldest one in the queue has waited."""

    states: dict[str, int]
    failures: dict[str, int]
    waiting_seconds: float


def count(connection: Connection, *, at: float) -> JobCounts:
    """Count all jobs."""
    job = schema.jobs.c
    states = dict.fromkeys(STATES, 0)
    for row in connection.execute(select(job.state, func.count().label("jobs")).group_by(job.state)):
        states[row.state] = row.jobs
    failed = select(job.code, func.count().label("jobs")).where(job.state == "failed").group_by(job.code)
    failures = {row.code or "unknown": row.jobs for row in connection.execute(failed)}
    oldest: float | None = connection.scalar(select(func.min(job.updated_at)).where(job.state == "queued"))
    return JobCounts(states=states, failures=failures, waiting_seconds=0.0 if oldest is None else max(0.0, at - oldest))
