"""`/admin/v1/tenants`: every tenant, and how much it has."""

from __future__ import annotations

import asyncio

import msgspec
from litestar import get
from litestar.di import NamedDependency

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.schemas.admin import TenantCounts, TenantList
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.scopes import ADMIN, SCOPE

__all__ = ["list_tenants"]


@get(
    "/admin/v1/tenants",
    operation_id="listTenants",
    summary="List tenants",
    responses=error_responses(500),
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def list_tenants(gateway: NamedDependency[Gateway]) -> TenantList:
    """List everybody who has a key, an adapter, a job or a file."""
    tenants = await asyncio.to_thread(gateway.registry.keys.tenants)
    return TenantList(data=[TenantCounts(**msgspec.structs.asdict(each)) for each in tenants])
