"""Reads which part of the generated text a request wants to see."""

from __future__ import annotations

import msgspec

from tunery.gateway.api.schemas.requests import SamplingFields
from tunery.registry.errors import InvalidInput

__all__ = ["TextOptions", "text_options"]

MAX_STOPS = 16
MAX_STOP = 1024
"""Characters of a stop string: how long finding one takes for each token grows with the square of its length."""


class TextOptions(msgspec.Struct, frozen=True):
    """Which text is shown: up to a stop string or including it, with control tokens or without.

    The first `min_tokens` tokens do not complete a stop string.
    """

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special: bool = True
    min_tokens: int = 0


def text_options(request: SamplingFields) -> TextOptions:
    """The text options of a request; raise InvalidInput for stop strings that make no sense."""
    return TextOptions(
        stops=_stop_strings(request.stop),
        include_stop=bool(request.include_stop_str_in_output),
        skip_special=request.skip_special_tokens is not False,
        min_tokens=request.min_tokens or 0,
    )


def _stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > MAX_STOPS:
        raise InvalidInput(f"stop has {len(strings)} strings; the limit is {MAX_STOPS}", param="stop")
    if (longest := max(map(len, strings), default=0)) > MAX_STOP:
        raise InvalidInput(f"a stop string has {longest} characters; the limit is {MAX_STOP}", param="stop")
    if "" in strings:
        raise InvalidInput("a stop string is empty, which would end every answer before it begins", param="stop")
    return strings
