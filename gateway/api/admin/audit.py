"""`/admin/v1/audit`: who changed what."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.schemas.admin import AuditList, AuditRecord
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.scopes import ADMIN, SCOPE
from tunery.registry.audit.log import AuditFilter

__all__ = ["list_audit"]

Limit = Annotated[int, QueryParameter(ge=1, le=1000)]
Time = Annotated[float | None, QueryParameter(ge=0, le=1e11)]
After = Annotated[int | None, QueryParameter(ge=0, le=2**53)]


@get(
    "/admin/v1/audit",
    operation_id="listAudit",
    summary="List the entries of the audit log",
    responses=error_responses(400, 500),
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def list_audit(
    gateway: NamedDependency[Gateway],
    tenant: FromQuery[str | None] = None,
    actor: FromQuery[str | None] = None,
    action: FromQuery[str | None] = None,
    since: Time = None,
    until: Time = None,
    after: After = None,
    limit: Limit = 100,
) -> AuditList:
    """List entries, newest first. `action` is one such as `key.create` or a kind such as `key`; times are Unix times."""
    wanted = AuditFilter(tenant=tenant, actor=actor, action=action, since=since, until=until)
    entries, more = await asyncio.to_thread(gateway.registry.audit.page, wanted, before=after, limit=limit)
    data = [AuditRecord(**msgspec.structs.asdict(entry)) for entry in entries]
    return AuditList(data=data, last_id=data[-1].id if data else None, has_more=more)
