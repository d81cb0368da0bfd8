"""How the tokens of a request are chosen."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["MAX_CONSTRAINT", "Constraint", "SamplingParams"]

MAX_CONSTRAINT = 256 * 1024
"""Bytes of a constraint's text."""


class Constraint(msgspec.Struct, frozen=True):
    """What structured output must match: `text` is a JSON schema, nothing (any JSON object), a
    regular expression, or a Lark grammar."""

    kind: Literal["json_schema", "json_object", "regex", "grammar"]
    text: str = ""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters of one request. The gateway validates them; the defaults are OpenAI's.

    `temperature` 0 is greedy decoding. `top_k` 0, `top_p` 1 and `min_p` 0 keep every token. `seed` makes the request's
    random numbers reproducible, whatever else is in the batch.

    `repetition_penalty` is the multiplicative one of CTRL (arXiv 1909.05858), over prompt and output;
    `presence_penalty` and `frequency_penalty` are OpenAI's additive ones, over the output. `allowed_token_ids`, unless
    empty, excludes all others. A bad word is given by its tokens, the last of which may not follow the others.
    `constraint` allows only tokens that keep the output within it; it does not go together with the last two.

    `logprobs` is how many alternatives to report for each output token (None: no log-probabilities, 0: only the chosen
    token's), `prompt_logprobs` the same for the tokens of the prompt.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
