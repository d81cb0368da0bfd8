"""`GET /v1/models`: the base and every adapter that it serves, as OpenAI lists models."""

from __future__ import annotations

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.schemas.models import ModelCard, ModelList
from tunery.gateway.api.state import Gateway
from tunery.registry import Base, Version
from tunery.registry.names import tenant_of

__all__ = ["list_models", "show_model"]


@get(
    "/v1/models",
    operation_id="listModels",
    summary="The base and every adapter it serves",
    responses=error_responses(500),
    tags=["models"],
)
async def list_models(gateway: NamedDependency[Gateway]) -> ModelList:
    """Everything that may be named as `model`."""
    resolver = gateway.resolver
    adapters = [_version_card(version.adapter, version, resolver.base.name) for version in resolver.served()]
    return ModelList([_base_card(resolver.base.name, resolver.base), *adapters])


@get(
    "/v1/models/{name:path}",
    operation_id="retrieveModel",
    summary="One model",
    responses=error_responses(400, 404, 500),
    tags=["models"],
)
async def show_model(name: FromPath[str], gateway: NamedDependency[Gateway]) -> ModelCard:
    """What a name means now."""
    name = name.lstrip("/")
    target = gateway.resolver.resolve_one(name)
    if target.version is None:
        return _base_card(name, target.base)
    return _version_card(name, target.version, target.base.name)


def _base_card(name: str, base: Base) -> ModelCard:
    return ModelCard(id=name, created=int(base.added_at), owned_by="tunery", root=base.name, digest=base.digest)


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
