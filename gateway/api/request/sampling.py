"""Turns a request's sampling fields into the engine's Sampling, refusing values that this model cannot apply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tunery.gateway.api.schemas.requests import SamplingFields
from tunery.gateway.engine.sampling_params import Constraint, SamplingParams
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry.errors import InvalidInput

__all__ = ["OutputOptions", "read_samplings"]

MAX_BAD_WORDS = 128
MAX_BIASES = 4096

TokenIds = tuple[int, ...]


class OutputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What each endpoint reads in its own way: the output's length and structure, and the
    log-probabilities to report."""

    max_tokens: int
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None


def read_samplings(
    request: SamplingFields, output: OutputOptions, *, vocab_size: int, renderer: Renderer
) -> list[SamplingParams]:
    """The engine's settings for each of the request's `n` choices, which differ in their seeds only.

    Raises InvalidInput naming the field that is wrong.
    """
    set_fields: dict[str, Any] = {
        name: value
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        if (value := getattr(request, name)) is not None
    }
    sampling = SamplingParams(
        max_tokens=output.max_tokens,
        top_k=max(request.top_k or 0, 0),
        stop_token_ids=_token_ids("stop_token_ids", request.stop_token_ids or (), vocab_size),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=request.min_tokens or 0,
        allowed_token_ids=_allowed_token_ids(request, output.constraint, vocab_size, renderer),
        bad_words=_bad_words(request, output.constraint, renderer),
        logit_bias=_logit_bias(request.logit_bias or {}, vocab_size),
        logprobs=output.logprobs,
        prompt_logprobs=output.prompt_logprobs,
        constraint=output.constraint,
        **set_fields,
    )
    return [_with_seed(sampling, request.seed, index) for index in range(request.n or 1)]


def _with_seed(sampling: SamplingParams, seed: int | None, index: int) -> SamplingParams:
    return sampling if seed is None else msgspec.structs.replace(sampling, seed=(seed + index) % 2**63)


def _token_ids(param: str, ids: Sequence[int], vocab_size: int) -> TokenIds:
    if len(ids) > vocab_size:
        raise InvalidInput(f"{param} has {len(ids)} entries, more than this model has tokens", param=param)
    if (largest := max(ids, default=0)) >= vocab_size:
        raise InvalidInput(f"{param}: {largest} is not a token id of this model (0 to {vocab_size - 1})", param=param)
    return tuple(ids)


def _allowed_token_ids(
    request: SamplingFields, constraint: Constraint | None, vocab_size: int, renderer: Renderer
) -> TokenIds:
    allowed = _token_ids("allowed_token_ids", request.allowed_token_ids or (), vocab_size)
    _refuse_with_constraint("allowed_token_ids", allowed, constraint)
    stops = {*renderer.stop_ids, *(request.stop_token_ids or ())}
    if allowed and request.min_tokens and stops.issuperset(allowed):
        raise InvalidInput(
            "allowed_token_ids has only stop tokens, which min_tokens forbids; "
            "allow another token or leave out min_tokens",
            param="allowed_token_ids",
        )
    return allowed


def _bad_words(request: SamplingFields, constraint: Constraint | None, renderer: Renderer) -> tuple[TokenIds, ...]:
    """The token ids of each word, both at the beginning of a text and after a space."""
    words = request.bad_words or ()
    _refuse_with_constraint("bad_words", words, constraint)
    if len(words) > MAX_BAD_WORDS:
        raise InvalidInput(f"bad_words has {len(words)} words; the limit is {MAX_BAD_WORDS}", param="bad_words")
    spelled = [renderer.encode(before + word.lstrip(), special=False) for word in words for before in ("", " ")]
    return tuple(sorted({tuple(ids) for ids in spelled if ids}))


def _refuse_with_constraint(param: str, value: Sequence[Any], constraint: Constraint | None) -> None:
    """Refuse forbidding tokens in structured output: they may be the only ones that the structure allows."""
    if value and constraint:
        raise InvalidInput(
            f"{param} cannot be combined with structured output, such as response_format or tool_choice; leave one out",
            param=param,
        )


def _logit_bias(biases: dict[str, float], vocab_size: int) -> dict[int, float]:
    if len(biases) > MAX_BIASES:
        raise InvalidInput(f"logit_bias has {len(biases)} entries; the limit is {MAX_BIASES}", param="logit_bias")
    by_id = {}
    for key, value in biases.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise InvalidInput(
                f"logit_bias: {key[:20]!r} is not a token id of this model (0 to {vocab_size - 1})", param="logit_bias"
            )
        by_id[int(key)] = value
    return by_id
