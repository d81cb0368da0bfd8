"""Checks that a prompt and its output fit the context, and truncates prompts on request."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any

from tunery.registry.errors import InvalidInput

__all__ = ["check_prompt_fits", "length_check", "newest_that_fit", "output_budget", "truncate_prompt"]

MAX_TRUNCATED_CONTEXTS = 8
"""How many contexts long a prompt may be before it is truncated."""


def output_budget(prompt_tokens: int, requested: int | None, *, context: int, default: int, param: str) -> int:
    """How many tokens may be generated; raise InvalidInput when prompt and output do not fit the context."""
    room = context - prompt_tokens
    if prompt_tokens == 0:
        raise InvalidInput("the prompt is empty", param=param)
    if room < 1 or (requested is not None and requested > room):
        raise _too_long(prompt_tokens, requested or 0, context, param)
    return min(default, room) if requested is None else requested


def check_prompt_fits(prompt_tokens: int, *, context: int, param: str) -> None:
    """Raise InvalidInput when a prompt without output does not fit the context."""
    if prompt_tokens > context:
        raise _too_long(prompt_tokens, 0, context, param)


def length_check(
    check_wanted: Callable[[], None], *, context: int, param: str, truncate: int | None
) -> Callable[[int], None]:
    """A check for the tokenizer to call with the least tokens a text can have, while it works.

    Raises what `check_wanted` raises, or InvalidInput when the text cannot fit. One that is to be truncated may be
    longer than the context, but not without limit.
    """
    limit = context if truncate is None else MAX_TRUNCATED_CONTEXTS * context

    def check(least: int) -> None:
        check_wanted()
        if least > limit:
            raise _too_long(least, 0, context, param, at_least=True)

    return check


def truncate_prompt(prompt: tuple[int, ...], keep: int | None, *, context: int, output: int = 0) -> tuple[int, ...]:
    """The last `keep` tokens of a prompt: all of them for None; for -1, as many as fit the context before `output`."""
    if keep == 0:
        raise InvalidInput("truncate_prompt_tokens is 0, so nothing would be left", param="truncate_prompt_tokens")
    if keep is None:
        return prompt
    return prompt[-(keep if keep > 0 else max(context - output, 1)) :]


def newest_that_fit(
    messages: list[dict[str, Any]],
    render: Callable[[list[dict[str, Any]]], list[int]],
    *,
    context: int,
    output: int | None,
    default: int,
) -> list[int]:
    """The prompt of as many of the last turns as fit the context before the output, found by bisection.

    A turn begins with a user's message; system messages at the beginning stay. Without a requested `output`, up to a
    quarter of the context is kept for it. Raises as `render` when not even the last turn fits the context.
    """
    room = context - (output or min(default, context // 4))
    head = len(list(takewhile(lambda message: message["role"] in ("system", "developer"), messages)))
    cuts = [head, *(at for at, message in enumerate(messages) if at > head and message["role"] == "user")]
    best = _rendered_within(messages, render, room)
    low, high = 1, len(cuts) - 1
    while best is None and low < high:
        middle = (low + high) // 2
        if _rendered_within(messages[:head] + messages[cuts[middle] :], render, room) is None:
            low = middle + 1
        else:
            high = middle
    return render(messages[:head] + messages[cuts[high] :]) if best is None else best


def _rendered_within(
    messages: list[dict[str, Any]], render: Callable[[list[dict[str, Any]]], list[int]], room: int
) -> list[int] | None:
    """The prompt, or None where it is longer than `room`."""
    try:
        prompt = render(messages)
    except InvalidInput as error:
        if error.code != "context_length_exceeded":
            raise
        return None
    return prompt if len(prompt) <= room else None


def _too_long(prompt: int, output: int, context: int, param: str, *, at_least: bool = False) -> InvalidInput:
    """The error in OpenAI's words, which LiteLLM, LangChain and others match."""
    least = "at least " if at_least else ""
    return InvalidInput(
        f"This model's maximum context length is {context} tokens. However, you requested {least}{prompt + output} tokens "
        f"({prompt} in the {param}, {output} in the completion). Please reduce the length of the {param} or completion.",
        code="context_length_exceeded",
        param=param,
    )
