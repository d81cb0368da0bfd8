"""How many jobs a tenant, and one of its keys, may have queued and running."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, func, select

from tunery.registry.errors import LimitReached
from tunery.registry.storage import schema

__all__ = ["JobLimits", "check_jobs"]


class JobLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The most jobs that may be queued and running: of a tenant, and of the key `key`. 0 is no limit."""

    tenant: int = 0
    key: str | None = None
    of_key: int = 0


def check_jobs(connection: Connection, tenant: str, limits: JobLimits) -> None:
    """Raise LimitReached where a tenant or key has more jobs than it may; called after one was added."""
    job = schema.jobs.c
    query = (
        select(func.count())
        .select_from(schema.jobs)
        .where(job.tenant == tenant, job.request.is_not(None), job.state.in_(("queued", "running")))
    )
    checks = [(limits.tenant, f"the tenant {tenant}", query)]
    if limits.key is not None:
        mine = query.where(job.request["actor"].as_string() == f"key:{limits.key}")
        checks.append((limits.of_key, f"the API key {limits.key}", mine))
    for limit, whose, counted in checks:
        if limit and (count := connection.scalar(counted) or 0) > limit:
            raise LimitReached(
                f"{whose} may have {limit} training jobs queued and running, and has {count - 1}: wait until one has "
                "ended, or cancel one",
                limit="training_jobs",
                wait=60.0,
            )
