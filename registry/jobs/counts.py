"""Count jobs, for monitoring."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, func, select

from tunery.registry.storage import schema

__all__ = ["STATES", "JobCounts", "JobProgress", "count"]

STATES = ("queued", "running", "paused", "succeeded", "failed", "cancelled")


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a running job is: the share of its steps that are done, seconds per step, and its last losses. What it has
    not measured yet is None."""

    adapter: str
    done: float
    step_seconds: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None


class JobCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs by state, failed ones by the code of their error, how long the oldest one in the queue has waited, the tokens
    that all jobs have trained on, how far those are that run, and for how long the quietest of these has reported nothing."""

    states: dict[str, int]
    failures: dict[str, int]
    waiting_seconds: float
    trained_tokens: int = 0
    running: tuple[JobProgress, ...] = ()
    silent_seconds: float = 0.0


def count(connection: Connection, *, at: float) -> JobCounts:
    """Count all jobs."""
    job = schema.jobs.c
    states = dict.fromkeys(STATES, 0)
    for row in connection.execute(select(job.state, func.count().label("jobs")).group_by(job.state)):
        states[row.state] = row.jobs
    failed = select(job.code, func.count().label("jobs")).where(job.state == "failed").group_by(job.code)
    failures = {row.code or "unknown": row.jobs for row in connection.execute(failed)}
    oldest: float | None = connection.scalar(select(func.min(job.updated_at)).where(job.state == "queued"))
    tokens = connection.scalar(select(func.sum(job.progress["trained_tokens"].as_integer())))
    quiet: float | None = connection.scalar(select(func.min(job.updated_at)).where(job.state == "running"))
    running = connection.execute(select(job.adapter, job.progress).where(job.state == "running"))
    return JobCounts(
        states=states,
        failures=failures,
        waiting_seconds=0.0 if oldest is None else max(0.0, at - oldest),
        trained_tokens=int(tokens or 0),
        silent_seconds=0.0 if quiet is None else max(0.0, at - quiet),
        running=tuple(_progress(row.adapter, row.progress or {}) for row in running),
    )


def _progress(adapter: str, progress: dict[str, Any]) -> JobProgress:
    step, steps, seconds = progress.get("step") or 0, progress.get("steps") or 0, progress.get("loop_seconds")
    return JobProgress(
        adapter=adapter,
        done=step / steps if steps else 0.0,
        step_seconds=seconds / step if step and seconds else None,
        train_loss=progress.get("train_loss"),
        eval_loss=progress.get("eval_loss"),
    )
