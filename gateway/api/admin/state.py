"""`/admin/v1/state`: how this gateway and its engine are."""

from __future__ import annotations

from litestar import get
from litestar.di import NamedDependency

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.schemas.admin import EngineState, ResidentAdapter, ServerState
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.scopes import ADMIN, SCOPE

__all__ = ["show_state"]


@get(
    "/admin/v1/state",
    operation_id="showState",
    summary="Describe this server's state",
    responses=error_responses(),
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def show_state(gateway: NamedDependency[Gateway]) -> ServerState:
    """Whether this process drains, what is in flight, and what its engine does and holds in memory."""
    base = gateway.resolver.base
    return ServerState(
        draining=gateway.draining,
        in_flight=gateway.in_flight,
        base=base.name,
        base_digest=base.digest,
        engine=_engine(gateway),
    )


def _engine(gateway: Gateway) -> EngineState:
    stats, outage = gateway.engine.stats, gateway.engine.outage
    resident = [
        ResidentAdapter(
            adapter=each.name,
            version=each.number,
            digest=each.digest,
            bytes=each.bytes,
            running=each.running,
            pinned=each.pinned,
        )
        for each in (stats.resident if stats else ())
    ]
    return EngineState(
        state="ready" if outage is None else outage.reason,
        restarts=gateway.engine.restarts,
        running=stats.running if stats else 0,
        waiting=stats.waiting if stats else 0,
        kv_used=stats.kv_used if stats else 0.0,
        resident=sorted(resident, key=lambda each: (each.adapter, each.version)),
    )
