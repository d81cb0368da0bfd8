"""`/health/live`, `/health/ready` and `/metrics`: the endpoints for orchestrators and monitoring."""

from __future__ import annotations

import asyncio
import contextlib

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from prometheus_client import CONTENT_TYPE_LATEST

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.state import Gateway
from tunery.gateway.metrics.registry_state import read_state
from tunery.gateway.tenancy.scopes import METRICS, SCOPE
from tunery.registry.errors import TuneryError

__all__ = ["OPERATION", "live", "metrics", "ready"]

OPERATION = "operation"
"""The entry of `opt` of what is answered to the end, also by a server that takes no new requests."""

_TEXT, _, _ = CONTENT_TYPE_LATEST.rpartition("; charset=")
"""The media type without its charset, which Litestar adds."""


@get(
    "/health/live",
    operation_id="healthLive",
    summary="Whether the process is alive",
    responses=error_responses(),
    tags=["operation"],
    opt={OPERATION: True},
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
    opt={OPERATION: True},
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
    opt={SCOPE: METRICS, OPERATION: True},
)
async def metrics(gateway: NamedDependency[Gateway]) -> Response[bytes]:
    """All metrics in Prometheus' text format."""
    await refresh_metrics(gateway)
    if gateway.exposition is not None:
        return Response(await gateway.exposition(), media_type=_TEXT)
    # There may be thousands of series, so they are formatted off the event loop.
    shown, in_thread = gateway.metrics, asyncio.get_running_loop().run_in_executor
    return Response(await in_thread(shown.thread, shown.exposition), media_type=_TEXT)


async def refresh_metrics(gateway: Gateway) -> None:
    """Bring up to date what is only read when somebody asks for the metrics."""
    shown, in_thread = gateway.metrics, asyncio.get_running_loop().run_in_executor
    shown.update_health(
        up=gateway.engine.ready is not None, restarts=gateway.engine.restarts, draining=gateway.draining
    )
    shown.update_tenants(gateway.admission.by_tenant)
    with contextlib.suppress(TuneryError):
        shown.add_adapters(gateway.resolver.adapters())
    if gateway.keyring is not None:
        shown.update_keys(await in_thread(shown.thread, gateway.keyring.states), age=gateway.keyring.age)
    shown.update_registry(await in_thread(shown.thread, read_state, gateway.registry))


def _registry(gateway: Gateway) -> str:
    try:
        gateway.registry.changes()
    except Exception:
        return "cannot be read"
    return "ok"
