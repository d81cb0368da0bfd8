"""Owns reading raw prompts, for completions and embeddings: one text, several texts, token ids, or several lists of them."""

from __future__ import annotations

from typing import Any

from tunery.gateway.api.state import Gateway
from tunery.registry.errors import InvalidInput

__all__ = ["read_prompts"]


async def read_prompts(
    given: str | list[Any], gateway: Gateway, *, param: str, most: int, special: bool = True
) -> list[tuple[int, ...]]:
    """Token ids of each prompt, at most `most`, with the tokens that the tokenizer puts around a text if `special`; raises
    InvalidInput naming `param`."""
    several = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    if len(several) > most:
        raise InvalidInput(f"{param} has {len(several)} prompts and {most} is the most", param=param)
    vocab_size = gateway.engine_ready().vocab_size
    size = sum(len(prompt) for prompt in several if isinstance(prompt, str))
    return await gateway.reading(
        size, lambda: [_ids(prompt, gateway, vocab_size, param, special) for prompt in several]
    )


def _ids(prompt: Any, gateway: Gateway, vocab_size: int, param: str, special: bool) -> tuple[int, ...]:
    if isinstance(prompt, str):
        ids = gateway.renderer.encode(prompt, special=special)
    elif isinstance(prompt, list) and all(type(token) is int and 0 <= token < vocab_size for token in prompt):
        ids = prompt
    else:
        raise InvalidInput(f"{param} is text, a list of texts, or token ids from 0 to {vocab_size - 1}", param=param)
    if not ids:
        raise InvalidInput(f"{param} is empty", param=param)
    return tuple(ids)
