"""`/admin/v1/keys`: create, list, rotate and revoke the API keys of all tenants."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.request.fields import check_fields
from tunery.gateway.api.schemas.admin import CreatedKey, Key, KeyCreate, KeyList, KeyRotate
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import ADMIN, SCOPE
from tunery.registry.errors import InvalidInput
from tunery.registry.keys.api_key import ApiKey

__all__ = ["create_key", "list_keys", "revoke_key", "rotate_key"]

MAX_ID = 100
"""Characters of an id."""
TenantQuery = Annotated[str | None, QueryParameter(max_length=64)]
OVERLAP_SECONDS = 86_400.0
"""How long an old key stays good where a rotation does not say."""


@post(
    "/admin/v1/keys",
    operation_id="createKey",
    summary="Create a key",
    status_code=200,
    responses=error_responses(400, 413, 415, 500),
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def create_key(
    data: JSONBody[KeyCreate],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> CreatedKey:
    """Create a key. Its token is in this answer and nowhere else."""
    await check_fields(request, KeyCreate)
    key, token = await asyncio.to_thread(
        gateway.registry.keys.create,
        tenant=data.tenant,
        scopes=data.scopes,
        adapters=data.adapters or (),
        label=data.label or "",
        seconds=data.expires_in,
        actor=principal.actor,
    )
    return CreatedKey(**_fields(key), key=token)


@get(
    "/admin/v1/keys",
    operation_id="listKeys",
    summary="List keys",
    responses=error_responses(400, 500),
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def list_keys(gateway: NamedDependency[Gateway], tenant: TenantQuery = None) -> KeyList:
    """List all keys, or those of a tenant, oldest first."""
    keys = await asyncio.to_thread(gateway.registry.keys.list, tenant=tenant)
    return KeyList(data=[Key(**_fields(key)) for key in keys])


@post(
    "/admin/v1/keys/{key_id:str}/rotate",
    operation_id="rotateKey",
    summary="Replace a key",
    status_code=200,
    responses=error_responses(400, 404, 413, 415, 500),
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def rotate_key(
    key_id: FromPath[str],
    data: JSONBody[KeyRotate],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> CreatedKey:
    """Create a key with the same rights, and let the old one be good for `overlap` seconds more."""
    await check_fields(request, KeyRotate)
    overlap = OVERLAP_SECONDS if data.overlap is None else data.overlap
    key, token = await asyncio.to_thread(
        gateway.registry.keys.rotate, key_id, actor=principal.actor, overlap=overlap
    )  # fmt: skip
    return CreatedKey(**_fields(key), key=token)


@post(
    "/admin/v1/keys/{key_id:str}/revoke",
    operation_id="revokeKey",
    summary="Revoke a key",
    status_code=200,
    responses=error_responses(400, 404, 500),
    tags=["admin"],
    opt={"no_body": True, SCOPE: ADMIN},
)
async def revoke_key(
    key_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> Key:
    """End a key, for good, in every process within a second."""
    if len(key_id) > MAX_ID:
        raise InvalidInput(f"no id of a key has {len(key_id)} characters", param="key_id")
    return Key(**_fields(await asyncio.to_thread(gateway.registry.keys.revoke, key_id, actor=principal.actor)))


def _fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "label": key.label,
        "scopes": list(key.scopes),
        "adapters": list(key.adapters),
        "state": key.state(time.time()),
        "created_at": key.created_at,
        "created_by": key.created_by,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "replaced_by": key.replaced_by,
    }
