"""What the OpenAPI document says beyond Litestar's: types with their bounds and optional fields, and answers that are streams."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar.openapi.spec import OpenAPI, OpenAPIMediaType, OpenAPIResponse, PathItem, Schema

from tunery.gateway.api.schemas import models as cards
from tunery.gateway.api.schemas import requests
from tunery.gateway.api.schemas import responses as schemas

__all__ = ["describe"]

_TYPES = (
    requests.ChatRequest,
    requests.CompletionRequest,
    requests.EmbeddingRequest,
    schemas.ChatCompletion,
    schemas.Completion,
    schemas.EmbeddingList,
    schemas.ErrorEnvelope,
    cards.AdapterList,
    cards.AdapterReference,
    cards.AdapterState,
    cards.LoadRequest,
    cards.ModelList,
)
_STREAMED = ("/v1/chat/completions", "/v1/completions")


def describe(document: OpenAPI) -> dict[str, set[str]]:
    """Complete `document` in place, and return the statuses of every path.

    Litestar drops bounds of nullable fields and takes what may be unset for required.
    """
    _, types = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    described: Any = types
    document.components.schemas = described
    for path in _STREAMED:
        operation = (document.paths or {})[path].post
        answer = operation.responses["200"] if operation and operation.responses else None
        if isinstance(answer, OpenAPIResponse) and answer.content:
            answer.content["text/event-stream"] = OpenAPIMediaType(schema=Schema(description="Server-sent events."))
    return {path: _statuses(item) for path, item in (document.paths or {}).items()}


def _statuses(item: PathItem) -> set[str]:
    return {status for operation in (item.get, item.post) if operation for status in operation.responses or ()}
