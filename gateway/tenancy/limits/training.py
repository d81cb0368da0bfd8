"""The limits of training and of what is stored; what they need is read from the registry, so call them in a thread."""

from __future__ import annotations

from tunery.gateway.tenancy.limits.book import LimitBook
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.usage.month import month_end, month_start
from tunery.registry.configuration.limits import Limits
from tunery.registry.errors import LimitReached
from tunery.registry.jobs.limits import JobLimits
from tunery.registry.usage.usage import Usage

__all__ = ["check_compute", "job_limits"]


def job_limits(book: LimitBook, by: Principal) -> JobLimits:
    """How many jobs whoever asks may have."""
    tenant, key = book.of_tenant(by.tenant), book.of_key(by.tenant, by.key)
    return JobLimits(tenant=tenant.training_jobs, key=by.key, of_key=key.training_jobs)


def check_compute(usage: Usage, book: LimitBook, by: Principal, *, now: float) -> None:
    """Raise LimitReached (insufficient_quota) where jobs have trained for as long as they may this month."""
    checks: list[tuple[Limits, str, str | None]] = [(book.of_tenant(by.tenant), f"the tenant {by.tenant}", None)]
    if by.key is not None:
        checks.append((book.of_key(by.tenant, by.key), f"the API key {by.key}", by.key))
    for limits, whose, key in checks:
        limit = limits.compute_seconds_per_month
        if limit and (used := usage.compute_seconds(by.tenant, start=month_start(now), key=key)) >= limit:
            raise LimitReached(
                f"{whose} may train for {limit} seconds a month and has trained for {used:.0f}: wait for the next month, or "
                "have the limit raised (compute_seconds_per_month)",
                limit="compute_seconds_per_month",
                wait=month_end(now) - now,
                code="insufficient_quota",
            )
