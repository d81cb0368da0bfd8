"""`POST /v1/completions`: continue raw text or token ids, each request on the adapter it names."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from litestar.response import Stream

from tunery.gateway.api.http.errors import ERRORS
from tunery.gateway.api.http.trace import trace_of
from tunery.gateway.api.request.fields import check_fields
from tunery.gateway.api.request.prompts import read_prompts
from tunery.gateway.api.request.sampling import output_room, sampling_of, shown_text, truncated
from tunery.gateway.api.request.structured_output import constraint_of
from tunery.gateway.api.response.completion import CompletionAnswer
from tunery.gateway.api.response.generation import Answers, Wanted
from tunery.gateway.api.response.sending import await_engine, event_stream, or_disconnect
from tunery.gateway.api.schemas.requests import CompletionRequest
from tunery.gateway.api.schemas.responses import Completion
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.messages import Constraint, Ready
from tunery.plugins.data.render.renderer import Renderer
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
    await check_fields(request, CompletionRequest)
    _refuse_unsupported(data)
    trace = trace_of(request)
    target = gateway.resolver.resolve(data.model, adapter=data.adapter or request.headers.get("x-tunery-adapter"))
    trace.model = data.model
    ready = await await_engine(request, gateway, target)
    constraint = constraint_of(data)
    prompts = await or_disconnect(request, lambda: _prompts(data, gateway))
    wanted = [one for prompt in prompts for one in _wanted(data, prompt, ready, constraint, gateway.renderer)]
    answer = CompletionAnswer(data, Answers(gateway, target, wanted, shown_text(data), trace))
    headers = target.headers()
    if data.stream:
        return await event_stream(request, answer.chunks(), headers=headers)
    return Response(await or_disconnect(request, answer.whole), headers=headers)


async def _prompts(data: CompletionRequest, gateway: Gateway) -> list[tuple[int, ...]]:
    special, truncate = data.add_special_tokens is not False, data.truncate_prompt_tokens
    return await read_prompts(
        data.prompt, gateway, param="prompt", most=MAX_PROMPTS, special=special, truncate=truncate
    )


def _wanted(
    data: CompletionRequest, prompt: tuple[int, ...], ready: Ready, constraint: Constraint | None, renderer: Renderer
) -> list[Wanted]:
    """The choices of one prompt. An engine always says something, so to say nothing is to ask for one token and not show it."""
    silent = data.max_tokens == 0
    prompt = truncated(
        prompt, data.truncate_prompt_tokens, context=ready.context_length, output=data.max_tokens or DEFAULT_MAX_TOKENS
    )
    room = output_room(
        len(prompt),
        1 if silent else data.max_tokens,
        context=ready.context_length,
        default=DEFAULT_MAX_TOKENS,
        param="prompt",
    )
    scored = data.logprobs if data.echo and data.prompt_logprobs is None else data.prompt_logprobs
    samplings = [
        sampling_of(
            data,
            max_tokens=room,
            logprobs=data.logprobs,
            prompt_logprobs=scored,
            constraint=constraint,
            index=index,
            vocab_size=ready.vocab_size,
            renderer=renderer,
        )
        for index in range(data.n or 1)
    ]
    return [Wanted(prompt, sampling, silent) for sampling in samplings]


def _refuse_unsupported(data: CompletionRequest) -> None:
    """Refuse by name what would change the answer and cannot be done."""
    if data.suffix:
        raise InvalidInput("suffix is not supported; leave it out", code="unsupported_parameter", param="suffix")
    if data.best_of not in (None, 1, data.n):
        raise InvalidInput("best_of is not supported; use n", code="unsupported_parameter", param="best_of")
    if data.max_tokens == 0 and not data.echo and data.prompt_logprobs is None:
        raise InvalidInput(
            "max_tokens is 0, so there would be no answer; it needs echo or prompt_logprobs", param="max_tokens"
        )
