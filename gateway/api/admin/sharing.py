"""Share adapters with other tenants: any adapter with the scope `admin`, one's own with `publish`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from litestar import Request, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.request.fields import check_fields
from tunery.gateway.api.schemas.admin import AdapterShare, AdapterUnshare, Share, ShareState, Unshare
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import ADMIN, PUBLISH, SCOPE
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.sharing.share import Share as Shared

__all__ = ["share_adapter", "share_any_adapter", "share_state", "unshare_adapter", "unshare_any_adapter"]

_ADAPTER = "/admin/v1/adapters/{tenant:str}/{name:str}"
_ERRORS = error_responses(400, 404, 413, 415, 500)


@post(
    "/v1/adapters/share",
    operation_id="shareAdapter",
    summary="Share an adapter with other tenants",
    status_code=200,
    responses=_ERRORS,
    tags=["adapters"],
    opt={SCOPE: PUBLISH},
)
async def share_adapter(
    data: JSONBody[AdapterShare],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> ShareState:
    """Let other tenants use an adapter of one's own, and list it; nothing else."""
    await check_fields(request, AdapterShare)
    return await _share(_own(data.adapter, principal), data, gateway, principal)


@post(
    "/v1/adapters/unshare",
    operation_id="unshareAdapter",
    summary="Share an adapter no more",
    status_code=200,
    responses=_ERRORS,
    tags=["adapters"],
    opt={SCOPE: PUBLISH},
)
async def unshare_adapter(
    data: JSONBody[AdapterUnshare],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> ShareState:
    """Share an adapter of one's own no more, or not with some. Requests that are accepted already are answered."""
    await check_fields(request, AdapterUnshare)
    return await _unshare(_own(data.adapter, principal), data, gateway, principal)


@post(
    f"{_ADAPTER}/share",
    operation_id="shareAnyAdapter",
    summary="Share a tenant's adapter with others",
    status_code=200,
    responses=_ERRORS,
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def share_any_adapter(
    tenant: FromPath[str],
    name: FromPath[str],
    data: JSONBody[Share],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> ShareState:
    """Let other tenants use an adapter, and list it; nothing else."""
    await check_fields(request, Share)
    return await _share(f"{tenant}/{name}", data, gateway, principal)


@post(
    f"{_ADAPTER}/unshare",
    operation_id="unshareAnyAdapter",
    summary="Share a tenant's adapter no more",
    status_code=200,
    responses=_ERRORS,
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def unshare_any_adapter(
    tenant: FromPath[str],
    name: FromPath[str],
    data: JSONBody[Unshare],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> ShareState:
    """Share an adapter no more, or not with some tenants. Requests that are accepted already are answered."""
    await check_fields(request, Unshare)
    return await _unshare(f"{tenant}/{name}", data, gateway, principal)


def share_state(adapter: str, share: Shared | None) -> ShareState:
    """With whom an adapter is shared."""
    if share is None:
        return ShareState(adapter=adapter, tenants=[], share_prefixes=False)
    return ShareState(adapter=adapter, tenants=list(share.tenants), share_prefixes=share.share_prefixes)


def _own(adapter: str, principal: Principal) -> str:
    """The adapter if it is theirs to share; another's does not exist unless it is shared with them."""
    if principal.may_make(adapter):
        return adapter
    if principal.is_shared(adapter):
        raise InvalidInput(f"{adapter} is not yours to share", code="adapter_not_allowed", param="adapter")
    raise NotFound(f"there is no adapter {adapter[:200]!r}", code="model_not_found", param="adapter")


async def _share(adapter: str, data: Share, gateway: Gateway, principal: Principal) -> ShareState:
    share = partial(gateway.registry.sharing.share, adapter, data.tenants, actor=principal.actor)
    made = await asyncio.to_thread(share, share_prefixes=data.share_prefixes, only=bool(data.only))
    return share_state(adapter, made)


async def _unshare(adapter: str, data: Unshare, gateway: Gateway, principal: Principal) -> ShareState:
    unshare = partial(gateway.registry.sharing.unshare, adapter, data.tenants, actor=principal.actor)
    return share_state(adapter, await asyncio.to_thread(unshare))
