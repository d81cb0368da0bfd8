"""`/v1/models`: the base and its adapters, in the format of OpenAI's model list."""

from __future__ import annotations

import asyncio

from litestar import delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.schemas.models import DeletedModel, ModelCard, ModelList
from tunery.gateway.api.state import Gateway
from tunery.gateway.jobs.model_names import is_checkpoint_name
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import INFER, PUBLISH, SCOPE
from tunery.registry import Base, Version
from tunery.registry.errors import NotFound
from tunery.registry.names import tenant_of

__all__ = ["delete_model", "list_models", "show_model"]


@get(
    "/v1/models",
    operation_id="listModels",
    summary="List the base and the adapters it serves",
    responses=error_responses(500),
    tags=["models"],
    opt={SCOPE: INFER},
)
async def list_models(gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]) -> ModelList:
    """List everything that a request may name as `model`."""
    resolver = gateway.resolver
    adapters = [_version_card(version.adapter, version, resolver.base.name) for version in resolver.served(principal)]
    tuned = [_version_card(name, version, resolver.base.name) for name, version in resolver.tuned(principal).items()]
    return ModelList([_base_card(resolver.base.name, resolver.base), *adapters, *tuned])


@get(
    "/v1/models/{name:path}",
    operation_id="retrieveModel",
    summary="Describe one model",
    responses=error_responses(400, 404, 500),
    tags=["models"],
    opt={SCOPE: INFER},
)
async def show_model(
    name: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> ModelCard:
    """Describe what a name means now: the base, or a version of an adapter."""
    name = name.lstrip("/")
    target = gateway.resolver.resolve_one(name, by=principal)
    if target.version is None:
        return _base_card(name, target.base)
    return _version_card(name, target.version, target.base.name)


@delete(
    "/v1/models/{name:path}",
    operation_id="deleteModel",
    summary="Delete a fine-tuned model",
    status_code=200,
    responses=error_responses(400, 404, 500),
    tags=["models"],
    opt={SCOPE: PUBLISH},
)
async def delete_model(
    name: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> DeletedModel:
    """Remove the version or checkpoint behind a name in OpenAI's form (`ft:…`); refused while an alias points to it."""
    name = name.lstrip("/")
    if is_checkpoint_name(name):
        try:
            adapter = gateway.registry.checkpoints.get(name).adapter
        except NotFound as error:
            raise _no_model(name) from error
        if not principal.may_make(adapter):
            raise _no_model(name)
        await asyncio.to_thread(gateway.registry.checkpoints.remove, name)
        return DeletedModel(id=name)
    place = gateway.registry.queue.names().get(name)
    if place is None or not principal.may_make(place[0]):
        raise _no_model(name)
    await asyncio.to_thread(gateway.registry.remove, f"{place[0]}@{place[1]}", actor=principal.actor)
    return DeletedModel(id=name)


def _no_model(name: str) -> NotFound:
    return NotFound(
        f"The model '{name[:200]}' does not exist or is not a fine-tuned model with a name of its own (ft:…)",
        code="model_not_found",
        param="model",
    )


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
