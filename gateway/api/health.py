"""`/health/live`, `/health/ready` and `/metrics`: the endpoints for orchestrators and monitoring."""

from __future__ import annotations

import asyncio

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from prometheus_client import CONTENT_TYPE_LATEST

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.scopes import METRICS, SCOPE

__all__ = ["live", "metrics", "ready"]

_TEXT, _, _ = CONTENT_TYPE_LATEST.rpartition("; charset=")
"""The media type without its charset, which Litestar adds."""


@get(
    "/health/live",
    operation_id="healthLive",
    summary="Whether the process is alive",
    responses=error_responses(),
    tags=["operation"],
)
async def live() -> dict[str, str]:
    """200 as long as the process answers, draining or not."""
    return {"status": "live"}


@get(
    "/health/ready",
    operation_id="healthReady",
    summary="Whether requests can be answered",
    responses=error_responses()
    | {503: ResponseSpec(dict[str, str], description="At least one check is not ok.", generate_examples=False)},
    tags=["operation"],
)
async def ready(gateway: NamedDependency[Gateway]) -> Response[dict[str, str]]:
    """200 when every check is ok, else 503."""
    checks = {
        "engine": outage.reason if (outage := gateway.engine.outage) is not None else "ok",
        "registry": _registry(gateway),
        "draining": "yes" if gateway.draining else "ok",
    }
    all_ok = all(check == "ok" for check in checks.values())
    return Response({"status": "ready" if all_ok else "not ready", **checks}, status_code=200 if all_ok else 503)


@get(
    "/metrics",
    operation_id="metrics",
    summary="Prometheus metrics",
    responses=error_responses(500),
    tags=["operation"],
    media_type=_TEXT,
    opt={SCOPE: METRICS},
)
async def metrics(gateway: NamedDependency[Gateway]) -> Response[bytes]:
    """All metrics in Prometheus' text format."""
    gateway.metrics.update_health(up=gateway.engine.ready is not None, restarts=gateway.engine.restarts)
    if _registry(gateway) == "ok":
        gateway.metrics.add_adapters(gateway.resolver.adapters())
        gateway.metrics.update_jobs(await asyncio.to_thread(gateway.registry.queue.counts))
        gateway.metrics.update_batches(await asyncio.to_thread(gateway.registry.batches.states))
        gateway.metrics.update_webhooks(await asyncio.to_thread(gateway.registry.webhooks.pending))
    # There may be thousands of series, so they are formatted off the event loop.
    return Response(await asyncio.to_thread(gateway.metrics.exposition), media_type=_TEXT)


def _registry(gateway: Gateway) -> str:
    try:
        gateway.registry.changes()
    except Exception:
        return "cannot be read"
    return "ok"
