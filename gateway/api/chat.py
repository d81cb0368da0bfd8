"""`POST /v1/chat/completions`: OpenAI's chat endpoint, each request on the adapter it names."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from litestar.response import Stream
from msgspec import UNSET

from tunery.gateway.api.answers import Answers, Piece, Wanted
from tunery.gateway.api.errors import ERRORS
from tunery.gateway.api.responding import event_stream, or_disconnect
from tunery.gateway.api.sampling import finite, output_room, sampling_of, stop_strings
from tunery.gateway.api.schemas import (
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    Logprobs,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from tunery.gateway.api.state import Gateway
from tunery.gateway.api.trace import trace_of
from tunery.plugins.data.renderer import Renderer
from tunery.registry.errors import InvalidInput

__all__ = ["chat_completions"]

ROLES = ("system", "developer", "user", "assistant", "tool")


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
    ready = gateway.engine_ready()
    messages = [_message(index, raw) for index, raw in enumerate(data.messages)]
    size = sum(len(message["content"]) for message in messages)
    prompt = tuple(await gateway.reading(size, lambda: gateway.renderer.prompt_ids(messages)))
    room = output_room(
        len(prompt),
        data.max_completion_tokens or data.max_tokens,
        context=ready.context_length,
        default=gateway.settings.default_max_tokens,
        param="messages",
    )
    logprobs = (data.top_logprobs or 0) if data.logprobs else None
    wanted = [
        Wanted(prompt, sampling_of(data, max_tokens=room, logprobs=logprobs, index=index, vocab_size=ready.vocab_size))
        for index in range(data.n or 1)
    ]
    answers = Answers(gateway, target, wanted, stop_strings(data.stop), trace)
    headers = target.headers()
    if data.stream:
        return await event_stream(request, _chunks(data, answers), headers=headers)
    return Response(await or_disconnect(request, lambda: _whole(data, answers)), headers=headers)


async def _whole(data: ChatRequest, answers: Answers) -> ChatCompletion:
    """The finished answer."""
    texts: list[list[str]] = [[] for _ in answers.wanted]
    logprobs: list[list[TokenLogprob]] = [[] for _ in answers.wanted]
    finishes = [""] * len(answers.wanted)
    async with contextlib.aclosing(answers.pieces()) as pieces:
        async for piece in pieces:
            texts[piece.index].append(piece.text)
            logprobs[piece.index] += _logprobs(data, answers.gateway.renderer, piece)
            finishes[piece.index] = piece.finish or ""
    choices = [
        ChatChoice(
            index=index,
            message=ChatMessage(role="assistant", content="".join(text), refusal=None),
            delta=UNSET,
            logprobs=Logprobs(logprobs[index]) if data.logprobs else None,
            finish_reason=finishes[index],
        )
        for index, text in enumerate(texts)
    ]
    return _completion(data, answers, "chat.completion", choices, usage=_usage(answers))


async def _chunks(data: ChatRequest, answers: Answers) -> AsyncGenerator[ChatCompletion, None]:
    """The stream: one chunk with the role per choice, pieces of text, the finish, and the usage if asked for."""
    usage = data.stream_options is not None and data.stream_options.include_usage
    unset: Any = None if usage else UNSET
    greeted: set[int] = set()
    async with contextlib.aclosing(answers.pieces()) as pieces:
        async for piece in pieces:
            role: Any = UNSET if piece.index in greeted else "assistant"
            if piece.text or piece.finish or role is not UNSET or data.logprobs:
                greeted.add(piece.index)
                delta = ChatMessage(
                    role=role, content=piece.text if piece.text or role is not UNSET else UNSET, refusal=UNSET
                )
                logprobs = _logprobs(data, answers.gateway.renderer, piece)
                choice = ChatChoice(
                    index=piece.index,
                    message=UNSET,
                    delta=delta,
                    logprobs=Logprobs(logprobs) if logprobs else None,
                    finish_reason=piece.finish,
                )
                yield _completion(data, answers, "chat.completion.chunk", [choice], usage=unset)
    if usage:
        yield _completion(data, answers, "chat.completion.chunk", [], usage=_usage(answers))


def _completion(
    data: ChatRequest, answers: Answers, kind: Any, choices: list[ChatChoice], *, usage: Any
) -> ChatCompletion:
    return ChatCompletion(
        id=f"chatcmpl-{answers.id}",
        object=kind,
        created=int(answers.created),
        model=data.model,
        choices=choices,
        system_fingerprint=answers.target.fingerprint,
        usage=usage,
    )


def _usage(answers: Answers) -> Usage:
    prompt, completion = answers.prompt_tokens, answers.completion_tokens
    return Usage(prompt, completion, prompt + completion)


def _logprobs(data: ChatRequest, renderer: Renderer, piece: Piece) -> list[TokenLogprob]:
    """A piece's token with its alternatives; none for the token that ended the turn, which is not part of the text."""
    if not data.logprobs or piece.token.finish == "stop":
        return []
    tops = [TopLogprob(*_spelled(renderer, top.token, top.logprob)) for top in piece.token.top]
    return [TokenLogprob(*_spelled(renderer, piece.token.token, piece.token.logprob), tops)]


def _spelled(renderer: Renderer, token: int, logprob: float) -> tuple[str, float, list[int]]:
    """A token as text, its log-probability and its exact bytes; half a character is text only together with the other half."""
    spelled = renderer.token_bytes(token)
    return spelled.decode(errors="replace"), finite(logprob), list(spelled)


def _message(index: int, raw: dict[str, Any]) -> dict[str, Any]:
    """One message with its content as text; raise InvalidInput naming what is wrong with it."""
    where, role, content = f"messages[{index}]", raw.get("role"), raw.get("content")
    if role not in ROLES:
        raise InvalidInput(f"{where}.role is {role!r}; it is one of {', '.join(ROLES)}", param="messages")
    if raw.get("tool_calls") or raw.get("function_call"):
        raise InvalidInput(
            f"{where} has tool calls, which are not supported", code="unsupported_parameter", param="messages"
        )
    if isinstance(content, list):
        content = "".join(_part(f"{where}.content[{at}]", part) for at, part in enumerate(content))
    if not isinstance(content, str):
        raise InvalidInput(f"{where}.content is missing; it is text or a list of text parts", param="messages")
    return {"role": "system" if role == "developer" else role, "content": content}


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise InvalidInput(
            f"{where} is of type {kind!r}; only text is supported", code="unsupported_parameter", param="messages"
        )
    text: str = part["text"]
    return text


def _refuse_unsupported(data: ChatRequest) -> None:
    """Refuse by name what would change the answer and cannot be done."""
    asked = {
        "tools": bool(data.tools),
        "tool_choice": data.tool_choice not in (None, "none", "auto"),
        "functions": bool(data.functions),
        "function_call": data.function_call not in (None, "none"),
        "response_format": (data.response_format or {}).get("type", "text") != "text",
        "modalities": data.modalities not in (None, ["text"]),
        "audio": data.audio is not None,
    }
    for name, given in asked.items():
        if given:
            raise InvalidInput(f"{name} is not supported; leave it out", code="unsupported_parameter", param=name)
    if data.top_logprobs is not None and not data.logprobs:
        raise InvalidInput("top_logprobs needs logprobs: true", param="top_logprobs")
