"""`/v1/adapters`: list the adapters on this base and which versions are in memory; load and unload them."""

from __future__ import annotations

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.schemas.models import (
    AdapterCard,
    AdapterList,
    AdapterReference,
    AdapterState,
    LoadRequest,
    ResidentVersion,
)
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import INFER, PUBLISH, SCOPE
from tunery.registry.errors import InvalidInput
from tunery.registry.names import tenant_of

__all__ = ["list_adapters", "load_adapter", "unload_adapter"]

MAX_BODY = 64 * 1024
"""Bytes of a request body that names an adapter."""
_ERRORS = error_responses(400, 404, 413, 415, 500, 503)


@get(
    "/v1/adapters",
    operation_id="listAdapters",
    summary="List adapters and their versions in memory",
    responses=error_responses(500),
    tags=["adapters"],
    opt={SCOPE: INFER},
)
async def list_adapters(gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]) -> AdapterList:
    """List the adapters on the served base: what each bare name means, the aliases, and the resident versions."""
    stats = gateway.engine.stats
    resident: dict[str, list[ResidentVersion]] = {}
    for version in sorted(stats.resident if stats else (), key=lambda version: version.number):
        resident.setdefault(version.name, []).append(
            ResidentVersion(version=version.number, bytes=version.bytes, running=version.running, pinned=version.pinned)
        )
    return AdapterList(
        [
            AdapterCard(
                id=latest.adapter,
                version=latest.number,
                digest=latest.digest,
                method=latest.method,
                aliases=gateway.registry.aliases(latest.adapter),
                resident=resident.get(latest.adapter, []),
            )
            for latest in gateway.resolver.served(principal)
        ]
    )


@post(
    "/v1/adapters/load",
    operation_id="loadAdapter",
    summary="Load an adapter into memory ahead of its first request",
    status_code=200,
    responses=_ERRORS | error_responses(422),
    tags=["adapters"],
    request_max_body_size=MAX_BODY,
    opt={SCOPE: PUBLISH},
)
async def load_adapter(
    data: JSONBody[LoadRequest], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> AdapterState:
    """Load a version, with the errors that a request for it would have. It can be evicted later unless it is pinned."""
    source = _source(data, gateway, principal)
    gateway.engine_ready()
    loaded = await gateway.engine.load(source, pin=bool(data.pin))
    return _state(source, loaded.bytes, resident=True, pinned=bool(data.pin))


@post(
    "/v1/adapters/unload",
    operation_id="unloadAdapter",
    summary="Unload an adapter once its running requests have ended",
    status_code=200,
    responses=_ERRORS,
    tags=["adapters"],
    request_max_body_size=MAX_BODY,
    opt={SCOPE: PUBLISH},
)
async def unload_adapter(
    data: JSONBody[AdapterReference], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> AdapterState:
    """Unload a version; `bytes` is the memory that this frees. The next request for it loads it again."""
    source = _source(data, gateway, principal)
    gateway.engine_ready()
    freed = await gateway.engine.unload(source.digest)
    return _state(source, freed.bytes, resident=False, pinned=False)


def _source(data: AdapterReference, gateway: Gateway, principal: Principal) -> AdapterSource:
    """The version, of an adapter that is not only shared."""
    composition = gateway.resolver.resolve_one(data.adapter, param="adapter", by=principal).composition
    if not composition:
        raise InvalidInput(f"{data.adapter!r} is the base, which is always in memory; name an adapter", param="adapter")
    source = composition[0].source
    if principal.is_shared(source.name) and not principal.may_continue(source.name):
        raise InvalidInput(
            f"{source.name} is shared for inference; {tenant_of(source.name)} loads and unloads it",
            code="adapter_not_allowed",
            param="adapter",
        )
    return source


def _state(source: AdapterSource, size: int, *, resident: bool, pinned: bool) -> AdapterState:
    return AdapterState(
        id=source.name, version=source.number, digest=source.digest, resident=resident, pinned=pinned, bytes=size
    )
