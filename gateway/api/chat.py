"""`POST /v1/chat/completions`: OpenAI's chat endpoint, each request on the adapter that it names."""

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
from tunery.gateway.api.request.chat import check_chat
from tunery.gateway.api.request.fields import check_body
from tunery.gateway.api.request.target import resolve_target
from tunery.gateway.api.request.tools import read_tool_calling
from tunery.gateway.api.response.chat import ChatCompletionBuilder
from tunery.gateway.api.response.event_stream import event_stream
from tunery.gateway.api.response.turn import begin_turn
from tunery.gateway.api.schemas.requests import ChatRequest
from tunery.gateway.api.schemas.responses import ChatCompletion
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.scopes import INFER, SCOPE

__all__ = ["chat_completions", "prepare_chat"]


@post(
    "/v1/chat/completions",
    operation_id="createChatCompletion",
    summary="Answer a conversation with the adapter (or base) that `model` names",
    status_code=200,
    responses=ERRORS
    | {
        200: ResponseSpec(
            ChatCompletion,
            description="The answer; with `stream`, parts of it as server-sent events.",
            generate_examples=False,
        )
    },
    tags=["inference"],
    opt={SCOPE: INFER},
)
async def chat_completions(
    data: JSONBody[ChatRequest], gateway: NamedDependency[Gateway], request: Request[Any, Any, Any]
) -> Response[Any] | Stream:
    """Answer a conversation, in one piece or as a stream."""
    call = await call_of(request)
    builder = await cancel_on_disconnect(request, lambda: prepare_chat(data, call, gateway))
    if data.stream:
        return await event_stream(
            request, builder.chunks(), headers=lambda: gateway.headers(builder.target, call.principal)
        )
    answer = await cancel_on_disconnect(request, builder.complete)
    return Response(answer, headers=gateway.headers(builder.target, call.principal))


async def prepare_chat(data: ChatRequest, call: Call, gateway: Gateway) -> ChatCompletionBuilder:
    """Check, resolve and render a chat request: all that comes before the engine."""
    check_body(call.body, ChatRequest)
    check_chat(data)
    target = resolve_target(call, data, gateway)
    ready = await gateway.wait_for_engine(target, background=call.background)
    tools = read_tool_calling(data)
    generation = await begin_turn(
        data, tools, call=call, gateway=gateway, target=target, ready=ready, size=len(call.body)
    )  # fmt: skip
    return ChatCompletionBuilder(data, generation, tools)
