"""`POST /v1/chat/completions`: OpenAI's chat endpoint, each request on the adapter it names."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from litestar.response import Stream

from tunery.gateway.api.answers import Answers, Wanted
from tunery.gateway.api.call_grammar import call_constraint
from tunery.gateway.api.call_parser import MARKS
from tunery.gateway.api.chat_answer import ChatAnswer
from tunery.gateway.api.constraints import constraint_of
from tunery.gateway.api.errors import ERRORS
from tunery.gateway.api.messages import read_messages
from tunery.gateway.api.requests import ChatRequest
from tunery.gateway.api.responding import event_stream, or_disconnect
from tunery.gateway.api.sampling import output_room, sampling_of, stop_strings
from tunery.gateway.api.schemas import ChatCompletion
from tunery.gateway.api.state import Gateway
from tunery.gateway.api.tools import Tooling, read_tooling
from tunery.gateway.api.trace import trace_of
from tunery.gateway.engine.messages import Constraint
from tunery.plugins.data.renderer import Renderer
from tunery.registry.errors import InvalidInput

__all__ = ["chat_completions"]


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
    _refuse_unsupported(data)
    trace = trace_of(request)
    target = gateway.resolver.resolve(data.model, adapter=data.adapter or request.headers.get("x-tunery-adapter"))
    trace.model = data.model
    gateway.engine_ready()
    tooling = read_tooling(data)
    wanted = await _wanted(data, gateway, tooling, size=len(await request.body()))
    marks = gateway.renderer.control_ids(MARKS) if tooling.functions else {}
    answers = Answers(
        gateway, target, wanted, stop_strings(data.stop), trace, {number: text for text, number in marks.items()}
    )
    answer = ChatAnswer(data, answers, tooling)
    headers = target.headers()
    if data.stream:
        return await event_stream(request, answer.chunks(), headers=headers)
    return Response(await or_disconnect(request, answer.whole), headers=headers)


async def _wanted(data: ChatRequest, gateway: Gateway, tooling: Tooling, *, size: int) -> list[Wanted]:
    """The choices: the rendered conversation, and how to go on from there."""
    ready = gateway.engine_ready()
    messages = read_messages(data.messages)
    constraint = _constraint(data, tooling, gateway.renderer)
    prompt = await gateway.reading(size, lambda: gateway.renderer.prompt_ids(messages, tools=tooling.offered))
    room = output_room(
        len(prompt),
        data.max_completion_tokens or data.max_tokens,
        context=ready.context_length,
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
        )
        for index in range(data.n or 1)
    ]
    return [Wanted(tuple(prompt), sampling) for sampling in samplings]


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


def _refuse_unsupported(data: ChatRequest) -> None:
    """Refuse by name what would change the answer and cannot be done."""
    asked = {
        "functions": (bool(data.functions), "use tools"),
        "function_call": (data.function_call not in (None, "none"), "use tool_choice"),
        "modalities": (data.modalities not in (None, ["text"]), "leave it out"),
        "audio": (data.audio is not None, "leave it out"),
    }
    for name, (given, hint) in asked.items():
        if given:
            raise InvalidInput(f"{name} is not supported; {hint}", code="unsupported_parameter", param=name)
    if data.top_logprobs is not None and not data.logprobs:
        raise InvalidInput("top_logprobs needs logprobs: true", param="top_logprobs")
