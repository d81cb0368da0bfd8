"""`/admin/v1/adapters`: the adapters of all tenants, their versions and aliases."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from tunery.gateway.api.admin.sharing import share_state
from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.request.fields import check_fields
from tunery.gateway.api.schemas.admin import (
    AdapterDetails,
    AdapterSummary,
    AdapterSummaryList,
    AliasMoved,
    AliasPoint,
    AliasRollback,
    DeletedVersion,
    VersionSummary,
)
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import ADMIN, SCOPE
from tunery.registry import Version
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.names import check_adapter, tenant_of
from tunery.registry.records import AliasMove
from tunery.registry.registry import Registry
from tunery.registry.versions.aliases import ANY, Expected

__all__ = ["delete_version", "drop_alias", "list_all_adapters", "move_alias", "rollback_alias", "show_adapter"]

ADAPTER = "/admin/v1/adapters/{tenant:str}/{name:str}"
ALIAS = f"{ADAPTER}/aliases/{{alias:str}}"
TenantQuery = Annotated[str | None, QueryParameter(max_length=64)]
_CHANGE = error_responses(400, 404, 413, 415, 500)


@get(
    "/admin/v1/adapters",
    operation_id="listAllAdapters",
    summary="List the adapters of all tenants",
    responses=error_responses(400, 500),
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def list_all_adapters(gateway: NamedDependency[Gateway], tenant: TenantQuery = None) -> AdapterSummaryList:
    """List the adapters of all tenants or of one, on whatever base, by name."""
    data = await asyncio.to_thread(_summaries, gateway.registry)
    return AdapterSummaryList(data=[each for each in data if tenant is None or each.tenant == tenant])


@get(
    ADAPTER,
    operation_id="retrieveAdapter",
    summary="Describe an adapter",
    responses=error_responses(400, 404, 500),
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def show_adapter(tenant: FromPath[str], name: FromPath[str], gateway: NamedDependency[Gateway]) -> AdapterDetails:
    """Describe an adapter: its versions, aliases with their history, and with whom it is shared."""
    return await asyncio.to_thread(_details, gateway.registry, f"{tenant}/{name}")


@post(
    ALIAS,
    operation_id="moveAlias",
    summary="Move an alias",
    status_code=200,
    responses=_CHANGE,
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def move_alias(
    tenant: FromPath[str],
    name: FromPath[str],
    alias: FromPath[str],
    data: JSONBody[AliasPoint],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> AliasMoved:
    """Point an alias at a version. Requests that are accepted from then on are answered by it."""
    await check_fields(request, AliasPoint)
    move = partial(gateway.registry.move_alias, f"{tenant}/{name}", alias, data.version)
    expected, reason = _expected(data.expected), data.reason or ""
    return _moved(await asyncio.to_thread(move, actor=principal.actor, expected=expected, reason=reason))


@delete(
    ALIAS,
    operation_id="dropAlias",
    summary="Delete an alias",
    status_code=200,
    responses=error_responses(400, 404, 500),
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def drop_alias(
    tenant: FromPath[str],
    name: FromPath[str],
    alias: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
) -> AliasMoved:
    """Delete an alias; the version that it pointed to stays."""
    drop = partial(gateway.registry.drop_alias, f"{tenant}/{name}", alias)
    return _moved(await asyncio.to_thread(drop, actor=principal.actor))


@post(
    f"{ALIAS}/rollback",
    operation_id="rollbackAlias",
    summary="Move an alias back",
    status_code=200,
    responses=_CHANGE,
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def rollback_alias(
    tenant: FromPath[str],
    name: FromPath[str],
    alias: FromPath[str],
    data: JSONBody[AliasRollback],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> AliasMoved:
    """Point an alias where it pointed before."""
    await check_fields(request, AliasRollback)
    adapter = f"{tenant}/{name}"
    await asyncio.to_thread(_versions, gateway.registry, adapter)
    back = partial(gateway.registry.rollback, adapter, alias, actor=principal.actor)
    expected, reason = _expected(data.expected), data.reason or "rollback"
    return _moved(await asyncio.to_thread(back, expected=expected, reason=reason))


@delete(
    f"{ADAPTER}/versions/{{number:str}}",
    operation_id="deleteVersion",
    summary="Delete a version",
    status_code=200,
    responses=error_responses(400, 404, 500),
    tags=["admin"],
    opt={SCOPE: ADMIN},
)
async def delete_version(
    tenant: FromPath[str],
    name: FromPath[str],
    number: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    force: FromQuery[bool] = False,
) -> DeletedVersion:
    """Delete a version for good; refused while an alias points to it, unless `force` deletes the alias as well."""
    if not (number.isascii() and number.isdigit()):
        raise InvalidInput(f"{number[:20]!r} is not the number of a version", code="invalid_name", param="number")
    remove = partial(gateway.registry.remove, f"{tenant}/{name}@{number}", actor=principal.actor, force=force)
    return DeletedVersion(id=(await asyncio.to_thread(remove)).name)


def _summaries(registry: Registry) -> list[AdapterSummary]:
    shared = {share.adapter: list(share.tenants) for share in registry.sharing.all()}
    return [
        AdapterSummary(
            id=version.adapter,
            tenant=tenant_of(version.adapter),
            version=version.number,
            digest=version.digest,
            base=version.base,
            method=version.method,
            created_at=version.created_at,
            shared_with=shared.get(version.adapter, []),
        )
        for version in registry.latest()
    ]


def _versions(registry: Registry, adapter: str) -> list[Version]:
    versions = registry.versions(check_adapter(adapter))
    if not versions:
        raise NotFound(f"there is no adapter {adapter}; see /admin/v1/adapters", code="model_not_found")
    return versions


def _details(registry: Registry, adapter: str) -> AdapterDetails:
    versions = _versions(registry, adapter)
    return AdapterDetails(
        id=adapter,
        tenant=tenant_of(adapter),
        versions=[_version(version) for version in versions],
        aliases=registry.aliases(adapter),
        history=[_moved(move) for move in registry.history(adapter)],
        sharing=share_state(adapter, registry.sharing.get(adapter)),
    )


def _version(version: Version) -> VersionSummary:
    return VersionSummary(
        version=version.number,
        digest=version.digest,
        base=version.base,
        method=version.method,
        aliases=list(version.aliases),
        bytes=version.size,
        created_at=version.created_at,
    )


def _moved(move: AliasMove) -> AliasMoved:
    return AliasMoved(**msgspec.structs.asdict(move))


def _expected(number: int | None) -> Expected:
    """Null is no expectation, 0 that there is no such alias."""
    return ANY if number is None else number or None
