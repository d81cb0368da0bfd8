"""`/v1/adapters`: what the registry has for this base and what of it is in memory; loading ahead of use, and unloading."""

from __future__ import annotations

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from tunery.gateway.api.errors import ERRORS
from tunery.gateway.api.schemas import AdapterCard, AdapterList, AdapterReference, AdapterState
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.messages import AdapterSource
from tunery.registry.errors import InvalidInput

__all__ = ["list_adapters", "load_adapter", "unload_adapter"]


@get(
    "/v1/adapters", operation_id="listAdapters", summary="Every adapter, and its versions in memory", tags=["adapters"]
)
async def list_adapters(gateway: NamedDependency[Gateway]) -> AdapterList:
    """Every adapter that this server serves: what its bare name means now, its aliases, and what is resident."""
    stats = gateway.engine.stats
    resident: dict[str, list[int]] = {}
    for one in stats.resident if stats else ():
        resident.setdefault(one.name, []).append(one.number)
    return AdapterList(
        [
            AdapterCard(
                id=version.adapter,
                version=version.number,
                digest=version.digest,
                method=version.method,
                aliases=gateway.registry.aliases(version.adapter),
                resident=sorted(resident.get(version.adapter, [])),
            )
            for version in gateway.resolver.served()
        ]
    )


@post(
    "/v1/adapters/load",
    operation_id="loadAdapter",
    summary="Bring an adapter into memory before anybody asks for it",
    status_code=200,
    responses=ERRORS,
    tags=["adapters"],
)
async def load_adapter(data: JSONBody[AdapterReference], gateway: NamedDependency[Gateway]) -> AdapterState:
    """Load a version; fails as a request for it would. It may be evicted later like any other."""
    source = _source(data, gateway)
    gateway.engine_ready()
    loaded = await gateway.engine.load(source)
    return AdapterState(id=source.name, version=source.number, digest=source.digest, resident=True, bytes=loaded.bytes)


@post(
    "/v1/adapters/unload",
    operation_id="unloadAdapter",
    summary="Free an adapter's memory once its running requests have ended",
    status_code=200,
    responses=ERRORS,
    tags=["adapters"],
)
async def unload_adapter(data: JSONBody[AdapterReference], gateway: NamedDependency[Gateway]) -> AdapterState:
    """Unload a version; `bytes` is what that gave back. The next request for it loads it again."""
    source = _source(data, gateway)
    gateway.engine_ready()
    freed = await gateway.engine.unload(source.digest)
    return AdapterState(id=source.name, version=source.number, digest=source.digest, resident=False, bytes=freed.bytes)


def _source(data: AdapterReference, gateway: Gateway) -> AdapterSource:
    source = gateway.resolver.resolve(data.adapter).source
    if source is None:
        raise InvalidInput(f"{data.adapter!r} is the base, which is always in memory; name an adapter", param="adapter")
    return source
