"""The PromQL that panels are made of, and the choices at the top of dashboards that it refers to."""

from __future__ import annotations

from collections.abc import Iterable

from dashboards.panels import Query, Variable

__all__ = [
    "ADAPTER",
    "HERE",
    "INSTANCE",
    "OURS",
    "TENANT",
    "THEIRS",
    "TOP",
    "quantiles",
    "rate",
    "share",
    "top",
    "total",
]

INSTANCE = Variable("instance", "label_values(tunery_engine_up, instance)")
ADAPTER = Variable("adapter", "label_values(tunery_requests_total, adapter)")
TENANT = Variable("tenant", "label_values(tunery_tenant_requests_total, tenant)")
HERE, OURS, THEIRS = (
    'instance=~"$instance"',
    'instance=~"$instance",adapter=~"$adapter"',
    ('instance=~"$instance",tenant=~"$tenant"'),
)
TOP = 10
"""Series of a panel that shows the busiest."""


def rate(metric: str, select: str = HERE, *, by: str = "", where: str = "") -> str:
    """How fast a counter grows, summed."""
    more = f",{where}" if where else ""
    summed = f"sum by ({by})" if by else "sum"
    return f"{summed} (rate({metric}{{{select}{more}}}[$__rate_interval]))"


def total(metric: str, select: str = HERE, *, by: str = "", how: str = "sum") -> str:
    """A gauge, summed or as `how` says."""
    return f"{how} by ({by}) ({metric}{{{select}}})" if by else f"{how} ({metric}{{{select}}})"


def top(expression: str) -> str:
    """The largest series."""
    return f"topk({TOP}, {expression})"


def share(part: str, whole: str) -> str:
    """One expression divided by another."""
    return f"{part} / {whole}"


def quantiles(
    metric: str, select: str = HERE, *, by: str = "", window: str = "$__rate_interval", shares: Iterable[float] = ()
) -> tuple[Query, ...]:
    """The median, the 95th and the 99th percentile."""
    labels = f"le, {by}" if by else "le"
    prefix = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(",") if label)
    buckets = f"sum by ({labels}) (rate({metric}_bucket{{{select}}}[{window}]))"
    return tuple(
        Query(f"{prefix} p{100 * share:g}".strip(), f"histogram_quantile({share}, {buckets})")
        for share in shares or (0.5, 0.95, 0.99)
    )
