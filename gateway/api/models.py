"""`GET /v1/models`: the base and every adapter that it serves, as OpenAI lists models."""

from __future__ import annotations

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath

from tunery.gateway.api.schemas import ModelCard, ModelList
from tunery.gateway.api.state import Gateway
from tunery.gateway.resolver import Target
from tunery.registry import Version
from tunery.registry.names import tenant_of

__all__ = ["list_models", "show_model"]


@get("/v1/models", operation_id="listModels", summary="The base and every adapter it serves", tags=["models"])
async def list_models(gateway: NamedDependency[Gateway]) -> ModelList:
    """Everything that may be named as `model`."""
    resolver = gateway.resolver
    base = _card(resolver.base.name, Target(resolver.base, None, None))
    adapters = [_card(version.adapter, Target(resolver.base, version, None)) for version in resolver.served()]
    return ModelList([base, *adapters])


@get("/v1/models/{name:path}", operation_id="retrieveModel", summary="One model", tags=["models"])
async def show_model(name: FromPath[str], gateway: NamedDependency[Gateway]) -> ModelCard:
    """What a name means now."""
    name = name.lstrip("/")
    return _card(name, gateway.resolver.resolve(name))


def _card(name: str, target: Target) -> ModelCard:
    base, version = target.base, target.version
    if version is None:
        return ModelCard(id=name, created=int(base.added_at), owned_by="tunery", root=base.name, digest=base.digest)
    return _version_card(name, version, base.name)


def _version_card(name: str, version: Version, base: str) -> ModelCard:
    return ModelCard(
        id=name,
        created=int(version.created_at),
        owned_by=tenant_of(version.adapter),
        root=base,
        parent=base,
        digest=version.digest,
        version=version.number,
        aliases=list(version.aliases),
    )
