"""Reads the raw prompts of completions and embeddings: one or several texts or lists of token ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tunery.gateway.api.request.context_length import length_check
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.messages import Ready
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry.errors import InvalidInput

__all__ = ["PromptOptions", "read_prompts"]


class PromptOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to read prompts.

    `param` is the field that errors name. `special` adds the tokens that the tokenizer puts
    around a text; `truncate` is the request's `truncate_prompt_tokens`.
    """

    param: str
    max_prompts: int
    special: bool = True
    truncate: int | None = None


async def read_prompts(
    prompts: str | list[Any], options: PromptOptions, *, gateway: Gateway, ready: Ready
) -> list[tuple[int, ...]]:
    """The token ids of each prompt; raise InvalidInput as soon as one cannot fit the context."""
    several = prompts if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int) else [prompts]
    if len(several) > options.max_prompts:
        raise InvalidInput(
            f"{options.param} has {len(several)} prompts; the limit is {options.max_prompts}", param=options.param
        )

    def read(check_wanted: Callable[[], None]) -> list[tuple[int, ...]]:
        check = length_check(check_wanted, context=ready.context_length, param=options.param, truncate=options.truncate)
        return [_token_ids(prompt, options, gateway.renderer, ready.vocab_size, check) for prompt in several]

    size = sum(len(prompt) for prompt in several if isinstance(prompt, str | list))
    return await gateway.offload(size, read)


def _token_ids(
    prompt: Any, options: PromptOptions, renderer: Renderer, vocab_size: int, check: Callable[[int], None]
) -> tuple[int, ...]:
    param = options.param
    if isinstance(prompt, list):
        check(len(prompt))
    if isinstance(prompt, str):
        ids = renderer.encode(prompt, special=options.special, check_length=check)
    elif isinstance(prompt, list) and all(type(token) is int and 0 <= token < vocab_size for token in prompt):
        ids = prompt
    else:
        raise InvalidInput(f"{param} is text, a list of texts, or token ids from 0 to {vocab_size - 1}", param=param)
    if not ids:
        raise InvalidInput(f"{param} is empty", param=param)
    return tuple(ids)
