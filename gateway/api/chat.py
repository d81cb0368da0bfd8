"""`POST /v1/chat/completions`: OpenAI's chat endpoint, each request on the adapter it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from litestar.response import Stream

from tunery.gateway.api.http.errors import ERRORS
from tunery.gateway.api.http.trace import trace_of
from tunery.gateway.api.request.fields import check_chat, check_fields
from tunery.gateway.api.request.messages import read_messages
from tunery.gateway.api.request.sampling import length_check, output_room, sampling_of, shown_text, truncated
from tunery.gateway.api.request.structured_output import constraint_of
from tunery.gateway.api.request.tool_call_grammar import call_constraint
from tunery.gateway.api.request.tools import Tooling, read_tooling
from tunery.gateway.api.response.chat import ChatAnswer
from tunery.gateway.api.response.generation import Answers, Wanted
from tunery.gateway.api.response.sending import await_engine, event_stream, or_disconnect
from tunery.gateway.api.response.tool_call_parser import MARKS
from tunery.gateway.api.schemas.requests import ChatRequest
from tunery.gateway.api.schemas.responses import ChatCompletion
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.messages import Constraint
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry.errors import InvalidInput

__all__ = ["chat_completions"]

MAX_MESSAGES = 4096
MAX_OPTIONS = 2**16


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
)
async def chat_completions(
    data: JSONBody[ChatRequest], gateway: NamedDependency[Gateway], request: Request[Any, Any, Any]
) -> Response[Any] | Stream:
    """Answer a conversation, whole or as a stream."""
    await check_fields(request, ChatRequest)
    check_chat(data)
    trace = trace_of(request)
    target = gateway.resolver.resolve(data.model, adapter=data.adapter or request.headers.get("x-tunery-adapter"))
    trace.model = data.model
    await await_engine(request, gateway, target)
    tooling = read_tooling(data)
    size = len(await request.body())
    wanted = await or_disconnect(request, lambda: _wanted(data, gateway, tooling, size=size))
    marks = gateway.renderer.control_ids(MARKS) if tooling.functions else {}
    answers = Answers(
        gateway, target, wanted, shown_text(data), trace, {number: text for text, number in marks.items()}
    )
    answer = ChatAnswer(data, answers, tooling)
    headers = target.headers()
    if data.stream:
        return await event_stream(request, answer.chunks(), headers=headers)
    return Response(await or_disconnect(request, answer.whole), headers=headers)


async def _wanted(data: ChatRequest, gateway: Gateway, tooling: Tooling, *, size: int) -> list[Wanted]:
    """The choices: the rendered conversation, and how to go on from there."""
    ready = gateway.engine_ready()
    if len(data.messages) > MAX_MESSAGES:
        raise InvalidInput(
            f"messages has {len(data.messages)} messages and {MAX_MESSAGES} is the most", param="messages"
        )
    constraint = _constraint(data, tooling, gateway.renderer)
    context = ready.context_length
    renderer = gateway.renderer.with_options(_template_options(data, gateway.renderer))

    def read(still_wanted: Callable[[], None]) -> list[int]:
        return renderer.prompt_ids(
            read_messages(data.messages),
            add_generation_prompt=data.add_generation_prompt is not False,
            continue_final=bool(data.continue_final_message),
            tools=tooling.offered,
            check=length_check(still_wanted, context=context, param="messages", truncate=data.truncate_prompt_tokens),
        )

    asked = data.max_completion_tokens or data.max_tokens
    prompt = truncated(
        tuple(await gateway.reading(size, read)), data.truncate_prompt_tokens, context=context, output=asked or 1
    )
    room = output_room(
        len(prompt),
        asked,
        context=context,
        default=gateway.settings.default_max_tokens,
        param="messages",
    )
    samplings = [
        sampling_of(
            data,
            max_tokens=room,
            logprobs=(data.top_logprobs or 0) if data.logprobs else None,
            prompt_logprobs=data.prompt_logprobs,
            constraint=constraint,
            index=index,
            vocab_size=ready.vocab_size,
            renderer=renderer,
        )
        for index in range(data.n or 1)
    ]
    return [Wanted(prompt, sampling) for sampling in samplings]


def _template_options(data: ChatRequest, renderer: Renderer) -> dict[str, Any]:
    """What the request sets for its template."""
    options = dict(data.chat_template_kwargs or {})
    if len(msgspec.json.encode(options)) > MAX_OPTIONS:
        raise InvalidInput(
            f"chat_template_kwargs is longer than {MAX_OPTIONS} bytes of JSON; shorten it", param="chat_template_kwargs"
        )
    if data.reasoning_effort is None:
        return options
    if not renderer.template or "reasoning_effort" not in renderer.template.variables:
        raise InvalidInput(
            "reasoning_effort is not supported, since this base's chat template does not read it; leave it out",
            code="unsupported_parameter",
            param="reasoning_effort",
        )
    return {"reasoning_effort": data.reasoning_effort} | options


def _constraint(data: ChatRequest, tooling: Tooling, renderer: Renderer) -> Constraint | None:
    """What the answer must be: what the request says of it, a call, or one of the two."""
    asked = constraint_of(data)
    if not tooling.functions or not (asked or tooling.required):
        return asked
    if asked and (tooling.required or asked.kind not in ("json_schema", "json_object")):
        raise InvalidInput(
            'the output cannot be a call and what the request says of it as well; only tool_choice "auto" goes together with '
            "a JSON response_format",
            param="tool_choice",
        )
    return call_constraint(
        tooling.functions,
        renderer.call_style,
        several=tooling.several,
        control=renderer.control_ids(MARKS),
        instead=asked,
    )
