"""`POST /v1/completions`: continue raw text or token ids, each request on the adapter it names."""

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
from tunery.gateway.api.schemas import Choice, Completion, CompletionRequest, Usage
from tunery.gateway.api.state import Gateway
from tunery.gateway.api.trace import trace_of
from tunery.gateway.engine.messages import Ready
from tunery.registry.errors import InvalidInput

__all__ = ["completions"]

MAX_PROMPTS = 64
DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint."""


@post(
    "/v1/completions",
    operation_id="createCompletion",
    summary="Continue text or token ids with the adapter (or base) that `model` names",
    status_code=200,
    responses=ERRORS
    | {
        200: ResponseSpec(
            Completion, description="The continuations; with `stream`, parts of it as server-sent events."
        )
    },
    tags=["inference"],
)
async def completions(
    data: JSONBody[CompletionRequest], gateway: NamedDependency[Gateway], request: Request[Any, Any, Any]
) -> Response[Any] | Stream:
    """Continue prompts, whole or as a stream."""
    if data.suffix:
        raise InvalidInput("suffix is not supported; leave it out", code="unsupported_parameter", param="suffix")
    if data.echo and data.logprobs is not None:
        raise InvalidInput(
            "echo with logprobs is not supported, since a prompt's log-probabilities are not computed; leave one out",
            code="unsupported_parameter",
            param="echo",
        )
    if data.best_of not in (None, 1, data.n):
        raise InvalidInput("best_of is not supported; use n", code="unsupported_parameter", param="best_of")
    trace = trace_of(request)
    target = gateway.resolver.resolve(data.model, adapter=data.adapter or request.headers.get("x-tunery-adapter"))
    trace.model = data.model
    ready = gateway.engine_ready()
    prompts = await gateway.reading(_size(data.prompt), lambda: _prompts(data.prompt, gateway, ready))
    wanted = [one for prompt in prompts for one in _wanted(data, prompt, ready)]
    answers = Answers(gateway, target, wanted, stop_strings(data.stop), trace)
    headers = target.headers()
    if data.stream:
        return await event_stream(request, _chunks(data, answers), headers=headers)
    return Response(await or_disconnect(request, lambda: _whole(data, answers)), headers=headers)


def _wanted(data: CompletionRequest, prompt: tuple[int, ...], ready: Ready) -> list[Wanted]:
    """The choices of one prompt."""
    room = output_room(
        len(prompt), data.max_tokens, context=ready.context_length, default=DEFAULT_MAX_TOKENS, param="prompt"
    )
    return [
        Wanted(
            prompt, sampling_of(data, max_tokens=room, logprobs=data.logprobs, index=index, vocab_size=ready.vocab_size)
        )
        for index in range(data.n or 1)
    ]


def _prompts(given: str | list[Any], gateway: Gateway, ready: Ready) -> list[tuple[int, ...]]:
    """Token ids of each prompt: from one text, several texts, one list of ids, or several."""
    several = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    if not several or len(several) > MAX_PROMPTS:
        raise InvalidInput(f"prompt has {len(several)} prompts; 1 to {MAX_PROMPTS} are possible", param="prompt")
    return [tuple(_ids(prompt, gateway, ready)) for prompt in several]


def _size(given: str | list[Any]) -> int:
    """Characters to be read."""
    return len(given) if isinstance(given, str) else sum(len(one) for one in given if isinstance(one, str))


def _ids(prompt: Any, gateway: Gateway, ready: Ready) -> list[int]:
    if isinstance(prompt, str):
        return gateway.renderer.encode(prompt)
    if isinstance(prompt, list) and all(type(token) is int and 0 <= token < ready.vocab_size for token in prompt):
        return prompt
    raise InvalidInput(
        f"prompt is text, a list of texts, or token ids from 0 to {ready.vocab_size - 1}", param="prompt"
    )


async def _whole(data: CompletionRequest, answers: Answers) -> Completion:
    """The finished answer."""
    gathered: list[list[Piece]] = [[] for _ in answers.wanted]
    async with contextlib.aclosing(answers.pieces()) as pieces:
        async for piece in pieces:
            gathered[piece.index].append(piece)
    choices = []
    for index, own in enumerate(gathered):
        text = _echoed(data, answers, index) + "".join(piece.text for piece in own)
        logprobs, _ = _logprobs(data, answers, own, offset=0)
        choices.append(Choice(index=index, text=text, logprobs=logprobs, finish_reason=own[-1].finish))
    return _completion(data, answers, choices, usage=_usage(answers))


async def _chunks(data: CompletionRequest, answers: Answers) -> AsyncGenerator[Completion, None]:
    """The stream."""
    usage = data.stream_options is not None and data.stream_options.include_usage
    unset: Any = None if usage else UNSET
    offsets: dict[int, int] = {}
    async with contextlib.aclosing(answers.pieces()) as pieces:
        async for piece in pieces:
            before = "" if piece.index in offsets else _echoed(data, answers, piece.index)
            logprobs, offsets[piece.index] = _logprobs(data, answers, [piece], offset=offsets.get(piece.index, 0))
            if piece.text or piece.finish or before or logprobs is not None:
                choice = Choice(
                    index=piece.index, text=before + piece.text, logprobs=logprobs, finish_reason=piece.finish
                )
                yield _completion(data, answers, [choice], usage=unset)
    if usage:
        yield _completion(data, answers, [], usage=_usage(answers))


def _completion(data: CompletionRequest, answers: Answers, choices: list[Choice], *, usage: Any) -> Completion:
    return Completion(
        id=f"cmpl-{answers.id}",
        created=int(answers.created),
        model=data.model,
        choices=choices,
        system_fingerprint=answers.target.fingerprint,
        usage=usage,
    )


def _usage(answers: Answers) -> Usage:
    prompt, completion = answers.prompt_tokens, answers.completion_tokens
    return Usage(prompt, completion, prompt + completion)


def _echoed(data: CompletionRequest, answers: Answers, index: int) -> str:
    return answers.gateway.renderer.decode(answers.wanted[index].prompt) if data.echo else ""


def _logprobs(
    data: CompletionRequest, answers: Answers, pieces: list[Piece], *, offset: int
) -> tuple[dict[str, Any] | None, int]:
    """OpenAI's older shape, parallel lists of tokens, log-probabilities, alternatives and text offsets; and the next offset."""
    if data.logprobs is None:
        return None, offset
    renderer = answers.gateway.renderer
    shown = [piece.token for piece in pieces if piece.token.finish != "stop"]
    spelled = [renderer.token_bytes(token.token) for token in shown]
    offsets = []
    for part in spelled:
        offsets.append(offset)
        # In UTF-8 every character has one byte that does not continue another.
        offset += sum(byte & 0xC0 != 0x80 for byte in part)
    return {
        "tokens": [part.decode(errors="replace") for part in spelled],
        "token_logprobs": [finite(token.logprob) for token in shown],
        "top_logprobs": [
            {renderer.token_bytes(top.token).decode(errors="replace"): finite(top.logprob) for top in token.top}
            for token in shown
        ],
        "text_offset": offsets,
    }, offset
