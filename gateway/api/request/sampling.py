"""Owns turning a request's fields into the engine's Sampling; refuses values it cannot mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tunery.gateway.api.response.detokenizer import TextOptions
from tunery.gateway.api.schemas.requests import SamplingFields
from tunery.gateway.engine.messages import Constraint, Sampling
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry.errors import InvalidInput

__all__ = ["check_context", "length_check", "output_room", "sampling_of", "shown_text", "truncated"]

MAX_STOPS = 16
MAX_BAD_WORDS = 128
MAX_BIASES = 4096
MOST_TRUNCATED = 8
"""Contexts that a prompt may be long before it is cut."""


def sampling_of(
    request: SamplingFields,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
    constraint: Constraint | None,
    index: int,
    vocab_size: int,
    renderer: Renderer,
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
        allowed_token_ids=_allowed(request, constraint, vocab_size, renderer),
        bad_words=_bad_words(request, constraint, renderer),
        logit_bias=_logit_bias(request.logit_bias or {}, vocab_size),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        constraint=constraint,
        **chosen,
    )


def shown_text(request: SamplingFields) -> TextOptions:
    """Which of the answer's text is shown."""
    return TextOptions(
        stops=_stop_strings(request.stop),
        include_stop=bool(request.include_stop_str_in_output),
        skip_special=request.skip_special_tokens is not False,
        min_tokens=request.min_tokens or 0,
    )


def _stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
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


def length_check(
    wanted: Callable[[], None], *, context: int, param: str, truncate: int | None
) -> Callable[[int], None]:
    """What reading a text is checked with: whether it is still `wanted`, and may fit. One that is cut may be longer, not endless."""
    most = context if truncate is None else MOST_TRUNCATED * context

    def check(least: int) -> None:
        wanted()
        if least > most:
            raise _too_long(least, 0, context, param, at_least=True)

    return check


def _too_long(prompt: int, output: int, context: int, param: str, *, at_least: bool = False) -> InvalidInput:
    """In OpenAI's words, by which LiteLLM, LangChain and others know it."""
    least = "at least " if at_least else ""
    return InvalidInput(
        f"This model's maximum context length is {context} tokens. However, you requested {least}{prompt + output} tokens "
        f"({prompt} in the {param}, {output} in the completion). Please reduce the length of the {param} or completion.",
        code="context_length_exceeded",
        param=param,
    )


def truncated(prompt: tuple[int, ...], most: int | None, *, context: int, output: int = 0) -> tuple[int, ...]:
    """The last `most` tokens of a prompt: all where it is None; where it is -1, as many as fit the context before `output`."""
    if most == 0:
        raise InvalidInput("truncate_prompt_tokens is 0, so nothing would be left", param="truncate_prompt_tokens")
    if most is None:
        return prompt
    room = most if most > 0 else max(context - output, 1)
    return prompt[-room:]


def _stop_tokens(given: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    return _token_ids("stop_token_ids", given, vocab_size)


def _token_ids(param: str, given: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    if len(given) > vocab_size:
        raise InvalidInput(f"{param} has {len(given)} entries, more than this model has tokens", param=param)
    if (largest := max(given, default=0)) >= vocab_size:
        raise InvalidInput(f"{param}: {largest} is not a token id of this model (0 to {vocab_size - 1})", param=param)
    return tuple(given)


def _allowed(
    request: SamplingFields, constraint: Constraint | None, vocab_size: int, renderer: Renderer
) -> tuple[int, ...]:
    """The only tokens there may be."""
    allowed = _token_ids("allowed_token_ids", request.allowed_token_ids or (), vocab_size)
    _refuse_with("allowed_token_ids", allowed, constraint)
    stops = {*renderer.stop_ids, *(request.stop_token_ids or ())}
    if allowed and request.min_tokens and stops.issuperset(allowed):
        raise InvalidInput("allowed_token_ids only has tokens that min_tokens forbids", param="allowed_token_ids")
    return allowed


def _bad_words(
    request: SamplingFields, constraint: Constraint | None, renderer: Renderer
) -> tuple[tuple[int, ...], ...]:
    """The words' tokens, as they stand at the beginning of a text and behind a space."""
    words = request.bad_words or ()
    _refuse_with("bad_words", words, constraint)
    if len(words) > MAX_BAD_WORDS:
        raise InvalidInput(f"bad_words has {len(words)} words and {MAX_BAD_WORDS} is the most", param="bad_words")
    spelled = [renderer.encode(before + word.lstrip(), special=False) for word in words for before in ("", " ")]
    return tuple(sorted({tuple(ids) for ids in spelled if ids}))


def _refuse_with(param: str, given: Sequence[Any], constraint: Constraint | None) -> None:
    """Tokens that are forbidden may be the only ones that a form allows."""
    if given and constraint:
        raise InvalidInput(
            f"{param} does not go together with a form of the output, such as response_format or tool_choice",
            param=param,
        )


def _logit_bias(given: dict[str, float], vocab_size: int) -> dict[int, float]:
    bias = {}
    if len(given) > MAX_BIASES:
        raise InvalidInput(f"logit_bias has {len(given)} entries and {MAX_BIASES} is the most", param="logit_bias")
    for key, value in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise InvalidInput(
                f"logit_bias: {key[:20]!r} is not a token id of this model (0 to {vocab_size - 1})", param="logit_bias"
            )
        bias[int(key)] = value
    return bias
