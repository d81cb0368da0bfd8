"""`/v1/responses`: OpenAI's Responses API on the same turns as chat; responses are stored only on request."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream

from tunery.gateway.api.http.connection import cancel_on_disconnect
from tunery.gateway.api.http.errors import ERRORS, error_responses
from tunery.gateway.api.items.chat_request import TOOL_PLACE, chat_request, naming_fields_of_responses
from tunery.gateway.api.items.conversation import MAX_ID, read_conversation, saver
from tunery.gateway.api.items.messages import to_messages
from tunery.gateway.api.items.response import ResponseBuilder
from tunery.gateway.api.request.call import Call, call_of
from tunery.gateway.api.request.fields import check_body
from tunery.gateway.api.request.target import resolve_target
from tunery.gateway.api.request.tools import read_tool_calling
from tunery.gateway.api.response.event_stream import event_stream
from tunery.gateway.api.response.turn import begin_turn
from tunery.gateway.api.schemas.items import DeletedResponse, ItemList, ResponseObject, ResponseRequest
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import INFER, SCOPE
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.records import StoredResponse

__all__ = ["create_response", "delete_response", "list_input_items", "prepare_response", "show_response"]


@post(
    "/v1/responses",
    operation_id="createResponse",
    summary="Answer a conversation, given as items, with the adapter (or base) that `model` names",
    status_code=200,
    responses=ERRORS
    | {
        200: ResponseSpec(
            ResponseObject,
            description="The response; with `stream`, its events as server-sent events.",
            generate_examples=False,
        )
    },
    tags=["inference"],
    opt={SCOPE: INFER},
)
async def create_response(
    data: JSONBody[ResponseRequest], gateway: NamedDependency[Gateway], request: Request[Any, Any, Any]
) -> Response[Any] | Stream:
    """Answer a conversation, in one piece or as a stream."""
    call = await call_of(request)
    builder = await cancel_on_disconnect(request, lambda: prepare_response(data, call, gateway))
    if data.stream:
        return await event_stream(
            request,
            builder.events(),
            headers=lambda: gateway.headers(builder.target, call.principal),
            style=builder,
        )
    answer = await cancel_on_disconnect(request, builder.complete)
    return Response(answer, headers=gateway.headers(builder.target, call.principal))


async def prepare_response(data: ResponseRequest, call: Call, gateway: Gateway) -> ResponseBuilder:
    """Check, resolve and render a request: all that comes before the engine."""
    check_body(call.body, ResponseRequest)
    target = resolve_target(call, data, gateway)
    ready = await gateway.wait_for_engine(target, background=call.background)
    conversation = await read_conversation(data, gateway=gateway, principal=call.principal, body_size=len(call.body))
    with naming_fields_of_responses():
        chat = chat_request(data, to_messages(conversation.items, instructions=data.instructions))
        tools = read_tool_calling(chat, place=TOOL_PLACE)
        generation = await begin_turn(
            chat,
            tools,
            call=call,
            gateway=gateway,
            target=target,
            ready=ready,
            size=conversation.size,
            param="input",
            drop_oldest=data.truncation == "auto",
        )
    return ResponseBuilder(
        data, generation, tools, save=saver(data, conversation.items, gateway=gateway, principal=call.principal)
    )


@get(
    "/v1/responses/{response_id:str}",
    operation_id="getResponse",
    summary="Read a stored response",
    responses=error_responses(400, 404, 500)
    | {200: ResponseSpec(ResponseObject, description="The response as it was sent.", generate_examples=False)},
    tags=["inference"],
    opt={SCOPE: INFER},
)
async def show_response(
    response_id: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    stream: FromQuery[bool | None] = None,
) -> Response[Any]:
    """Read a response that was created with `store: true`."""
    if stream:
        raise InvalidInput(
            "a stored response cannot be streamed again; leave stream out", code="unsupported_parameter", param="stream"
        )
    return Response((await _find(response_id, gateway, principal)).body)


@delete(
    "/v1/responses/{response_id:str}",
    operation_id="deleteResponse",
    summary="Delete a stored response",
    status_code=200,
    responses=error_responses(400, 404, 500),
    tags=["inference"],
    opt={SCOPE: INFER},
)
async def delete_response(
    response_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> DeletedResponse:
    """Forget a response and the conversation before it; later responses have their own copy."""
    _check_id(response_id)
    await asyncio.to_thread(gateway.registry.responses.delete, response_id, tenant=principal.tenant)
    return DeletedResponse(id=response_id)


@get(
    "/v1/responses/{response_id:str}/input_items",
    operation_id="listInputItems",
    summary="List the items that a stored response answered",
    responses=error_responses(400, 404, 500),
    tags=["inference"],
    opt={SCOPE: INFER},
)
async def list_input_items(
    response_id: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    after: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
    order: FromQuery[Literal["asc", "desc"]] = "desc",
) -> ItemList:
    """List the conversation before a response, the last item first unless `order` is asc."""
    items = (await _find(response_id, gateway, principal)).items
    items = items if order == "asc" else items[::-1]
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise NotFound(f"Item with id '{after[:MAX_ID]}' not found.", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return ItemList(data=page, first_id=first, last_id=last, has_more=len(items) > limit)


async def _find(response_id: str, gateway: Gateway, principal: Principal) -> StoredResponse:
    _check_id(response_id)
    return await asyncio.to_thread(gateway.registry.responses.get, response_id, tenant=principal.tenant)


def _check_id(response_id: str) -> None:
    if len(response_id) > MAX_ID:
        raise InvalidInput(f"no id of a response has {len(response_id)} characters", param="id")
