"""The inference endpoints by path, for what answers a request that did not come over HTTP: a line of a batch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from tunery.gateway.api.chat import prepare_chat
from tunery.gateway.api.completions import prepare_completion
from tunery.gateway.api.embeddings import prepare_embeddings
from tunery.gateway.api.http.errors import wrong_shape
from tunery.gateway.api.request.call import Call
from tunery.gateway.api.responses import prepare_response
from tunery.gateway.api.schemas.items import ResponseRequest
from tunery.gateway.api.schemas.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from tunery.gateway.api.state import Gateway
from tunery.registry.errors import InvalidInput

__all__ = ["ENDPOINTS", "Endpoint", "answer"]


class Prepared(Protocol):
    """A request that is ready for the engine."""

    async def complete(self) -> Any:
        """The finished response."""


class Endpoint(msgspec.Struct, frozen=True):
    """The type of an endpoint's body, and what its handler does with one before the engine."""

    body: type[msgspec.Struct]
    prepare: Callable[[Any, Call, Gateway], Awaitable[Prepared]]


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": Endpoint(ChatRequest, prepare_chat),
    "/v1/completions": Endpoint(CompletionRequest, prepare_completion),
    "/v1/embeddings": Endpoint(EmbeddingRequest, prepare_embeddings),
    "/v1/responses": Endpoint(ResponseRequest, prepare_response),
}
"""What a batch may ask for."""


async def answer(endpoint: Endpoint, call: Call, gateway: Gateway) -> Any:
    """The whole response to a call, as the endpoint's handler gives it; a stream is refused.

    Raises InvalidInput for a body of the wrong shape, and what the endpoint raises.
    """
    data = _decode(endpoint, call.body)
    if getattr(data, "stream", None):
        raise InvalidInput("stream is not supported here; leave it out", code="unsupported_parameter", param="stream")
    async with gateway.background_turn:
        prepared = await endpoint.prepare(data, call, gateway)
    return await prepared.complete()


def _decode(endpoint: Endpoint, body: bytes) -> Any:
    """The body as the endpoint's type, with the same words as over HTTP where it is not of that shape."""
    try:
        return msgspec.convert(msgspec.json.decode(body), endpoint.body, strict=False, str_keys=True)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        raise wrong_shape(message, place.lstrip(".")) from error
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the body is not JSON: {error}", code="invalid_json") from error
    except RecursionError as error:
        raise InvalidInput("the request is nested too deeply", code="invalid_value") from error
