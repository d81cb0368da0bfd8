"""Owns turning a request's fields into the engine's Sampling; refuses values it cannot mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunery.gateway.api.requests import SamplingFields
from tunery.gateway.engine.messages import Constraint, Sampling
from tunery.registry.errors import InvalidInput

__all__ = ["check_context", "output_room", "sampling_of", "stop_strings"]

MAX_STOPS = 16


def sampling_of(
    request: SamplingFields,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
    constraint: Constraint | None,
    index: int,
    vocab_size: int,
) -> Sampling:
    """The engine's settings for choice `index` of a request."""
    chosen: dict[str, Any] = {
        name: value
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        if (value := getattr(request, name)) is not None
    }
    return Sampling(
        max_tokens=max_tokens,
        top_k=max(request.top_k or 0, 0),
        seed=None if request.seed is None else (request.seed + index) % 2**63,
        stop_token_ids=_stop_tokens(request.stop_token_ids or (), vocab_size),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=request.min_tokens or 0,
        logit_bias=_logit_bias(request.logit_bias or {}, vocab_size),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        constraint=constraint,
        **chosen,
    )


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """The strings that end an answer."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > MAX_STOPS:
        raise InvalidInput(f"stop has {len(strings)} strings and {MAX_STOPS} is the most", param="stop")
    if "" in strings:
        raise InvalidInput("a stop string is empty, which would end every answer before it begins", param="stop")
    return strings


def output_room(prompt_tokens: int, wanted: int | None, *, context: int, default: int, param: str) -> int:
    """How many tokens may be generated; raise InvalidInput when prompt and output do not fit the context."""
    room = context - prompt_tokens
    if prompt_tokens == 0:
        raise InvalidInput("the prompt is empty", param=param)
    if room < 1 or (wanted is not None and wanted > room):
        raise _too_long(prompt_tokens, wanted or 0, context, param)
    return min(default, room) if wanted is None else wanted


def check_context(prompt_tokens: int, *, context: int, param: str) -> None:
    """Raise InvalidInput when a prompt that nothing follows does not fit the context."""
    if prompt_tokens > context:
        raise _too_long(prompt_tokens, 0, context, param)


def _too_long(prompt: int, output: int, context: int, param: str) -> InvalidInput:
    """In OpenAI's words, by which LiteLLM, LangChain and others know it."""
    return InvalidInput(
        f"This model's maximum context length is {context} tokens. However, you requested {prompt + output} tokens "
        f"({prompt} in the {param}, {output} in the completion). Please reduce the length of the {param} or completion.",
        code="context_length_exceeded",
        param=param,
    )


def _stop_tokens(given: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    for token in given:
        if token >= vocab_size:
            raise InvalidInput(
                f"stop_token_ids: {token} is not a token id of this model (0 to {vocab_size - 1})",
                param="stop_token_ids",
            )
    return tuple(given)


def _logit_bias(given: dict[str, float], vocab_size: int) -> dict[int, float]:
    bias = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise InvalidInput(
                f"logit_bias: {key[:20]!r} is not a token id of this model (0 to {vocab_size - 1})", param="logit_bias"
            )
        bias[int(key)] = value
    return bias
