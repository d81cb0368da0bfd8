"""`POST /v1/completions`: continue raw text or token ids, each request on the adapter that it names."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from litestar.response import Stream

from tunery.gateway.api.http.connection import cancel_on_disconnect
from tunery.gateway.api.http.errors import ERRORS
from tunery.gateway.api.request.call import Call, call_of
from tunery.gateway.api.request.completions import check_completion, read_completion
from tunery.gateway.api.request.fields import check_body
from tunery.gateway.api.request.target import resolve_target
from tunery.gateway.api.request.text_options import text_options
from tunery.gateway.api.response.completions import CompletionBuilder
from tunery.gateway.api.response.event_stream import event_stream
from tunery.gateway.api.response.generation import Generation
from tunery.gateway.api.schemas.requests import CompletionRequest
from tunery.gateway.api.schemas.responses import Completion
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.scopes import INFER, SCOPE

__all__ = ["completions", "prepare_completion"]


@post(
    "/v1/completions",
    operation_id="createCompletion",
    summary="Continue text or token ids with the adapter (or base) that `model` names",
    status_code=200,
    responses=ERRORS
    | {
        200: ResponseSpec(
            Completion, description="The continuations; with `stream`, parts of them as server-sent events."
        )
    },
    tags=["inference"],
    opt={SCOPE: INFER},
)
async def completions(
    data: JSONBody[CompletionRequest], gateway: NamedDependency[Gateway], request: Request[Any, Any, Any]
) -> Response[Any] | Stream:
    """Continue prompts, answering in one piece or as a stream."""
    call = await call_of(request)
    builder = await cancel_on_disconnect(request, lambda: prepare_completion(data, call, gateway))
    if data.stream:
        return await event_stream(
            request, builder.chunks(), headers=lambda: gateway.headers(builder.target, call.principal)
        )
    answer = await cancel_on_disconnect(request, builder.complete)
    return Response(answer, headers=gateway.headers(builder.target, call.principal))


async def prepare_completion(data: CompletionRequest, call: Call, gateway: Gateway) -> CompletionBuilder:
    """Check, resolve and tokenize a completion request: all that comes before the engine."""
    check_body(call.body, CompletionRequest)
    check_completion(data)
    target = resolve_target(call, data, gateway)
    ready = await gateway.wait_for_engine(target, background=call.background)
    choices = await read_completion(data, gateway=gateway, ready=ready)
    return CompletionBuilder(data, Generation(gateway, target, choices, text_options(data), call))
