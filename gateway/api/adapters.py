"""`/v1/adapters`: what the registry has for this base and what of it is in memory; loading ahead of use, and unloading."""

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
from tunery.registry.errors import InvalidInput

__all__ = ["list_adapters", "load_adapter", "unload_adapter"]

MAX_BODY = 64 * 1024
"""Bytes of a body that names an adapter."""
_ERRORS = error_responses(400, 404, 413, 415, 500, 503)


@get(
    "/v1/adapters",
    operation_id="listAdapters",
    summary="Every adapter, and its versions in memory",
    responses=error_responses(500),
    tags=["adapters"],
)
async def list_adapters(gateway: NamedDependency[Gateway]) -> AdapterList:
    """Every adapter that this server serves: what its bare name means now, its aliases, and what is resident."""
    stats = gateway.engine.stats
    resident: dict[str, list[ResidentVersion]] = {}
    for one in sorted(stats.resident if stats else (), key=lambda one: one.number):
        shown = ResidentVersion(version=one.number, bytes=one.bytes, running=one.running, pinned=one.pinned)
        resident.setdefault(one.name, []).append(shown)
    return AdapterList(
        [
            AdapterCard(
                id=version.adapter,
                version=version.number,
                digest=version.digest,
                method=version.method,
                aliases=gateway.registry.aliases(version.adapter),
                resident=resident.get(version.adapter, []),
            )
            for version in gateway.resolver.served()
        ]
    )


@post(
    "/v1/adapters/load",
    operation_id="loadAdapter",
    summary="Bring an adapter into memory before anybody asks for it",
    status_code=200,
    responses=_ERRORS | error_responses(422),
    tags=["adapters"],
    request_max_body_size=MAX_BODY,
)
async def load_adapter(data: JSONBody[LoadRequest], gateway: NamedDependency[Gateway]) -> AdapterState:
    """Load a version; fails as a request for it would. It may be evicted later like any other, unless it is pinned."""
    source = _source(data, gateway)
    gateway.engine_ready()
    loaded = await gateway.engine.load(source, pin=bool(data.pin))
    return _state(source, loaded.bytes, resident=True, pinned=bool(data.pin))


@post(
    "/v1/adapters/unload",
    operation_id="unloadAdapter",
    summary="Free an adapter's memory once its running requests have ended",
    status_code=200,
    responses=_ERRORS,
    tags=["adapters"],
    request_max_body_size=MAX_BODY,
)
async def unload_adapter(data: JSONBody[AdapterReference], gateway: NamedDependency[Gateway]) -> AdapterState:
    """Unload a version; `bytes` is what that gave back. The next request for it loads it again."""
    source = _source(data, gateway)
    gateway.engine_ready()
    freed = await gateway.engine.unload(source.digest)
    return _state(source, freed.bytes, resident=False, pinned=False)


def _source(data: AdapterReference, gateway: Gateway) -> AdapterSource:
    composition = gateway.resolver.resolve_one(data.adapter, param="adapter").composition
    if not composition:
        raise InvalidInput(f"{data.adapter!r} is the base, which is always in memory; name an adapter", param="adapter")
    return composition[0].source


def _state(source: AdapterSource, size: int, *, resident: bool, pinned: bool) -> AdapterState:
    return AdapterState(
        id=source.name, version=source.number, digest=source.digest, resident=resident, pinned=pinned, bytes=size
    )
