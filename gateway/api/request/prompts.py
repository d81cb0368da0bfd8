"""Owns reading raw prompts, for completions and embeddings: one text, several texts, token ids, or several lists of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunery.gateway.api.request.sampling import length_check
from tunery.gateway.api.state import Gateway
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry.errors import InvalidInput

__all__ = ["read_prompts"]


async def read_prompts(
    given: str | list[Any],
    gateway: Gateway,
    *,
    param: str,
    most: int,
    special: bool = True,
    truncate: int | None = None,
) -> list[tuple[int, ...]]:
    """Token ids of each prompt, at most `most`, with the tokens that the tokenizer puts around a text if `special`; raises
    InvalidInput naming `param`, as soon as a prompt cannot fit the context."""
    several = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    if len(several) > most:
        raise InvalidInput(f"{param} has {len(several)} prompts and {most} is the most", param=param)
    ready = gateway.engine_ready()
    size = sum(len(prompt) for prompt in several if isinstance(prompt, str | list))

    def read(wanted: Callable[[], None]) -> list[tuple[int, ...]]:
        check = length_check(wanted, context=ready.context_length, param=param, truncate=truncate)
        return [_ids(prompt, gateway.renderer, ready.vocab_size, param, special, check) for prompt in several]

    return await gateway.reading(size, read)


def _ids(
    prompt: Any, renderer: Renderer, vocab_size: int, param: str, special: bool, check: Callable[[int], None]
) -> tuple[int, ...]:
    if isinstance(prompt, list):
        check(len(prompt))
    if isinstance(prompt, str):
        ids = renderer.encode(prompt, special=special, check=check)
    elif isinstance(prompt, list) and all(type(token) is int and 0 <= token < vocab_size for token in prompt):
        ids = prompt
    else:
        raise InvalidInput(f"{param} is text, a list of texts, or token ids from 0 to {vocab_size - 1}", param=param)
    if not ids:
        raise InvalidInput(f"{param} is empty", param=param)
    return tuple(ids)
