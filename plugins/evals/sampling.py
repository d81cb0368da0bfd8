"""How models are sampled in an evaluation: OpenAI's `sampling_params`, greedy and with a fixed seed unless they differ."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tunery.registry.errors import InvalidInput

__all__ = ["check_output_fits", "read_sampling"]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's fields; `max_completions_tokens` is its other spelling of `max_completion_tokens`."""

    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = 0
    max_completion_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    max_completions_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    response_format: dict[str, Any] | None = None


def read_sampling(raw: dict[str, Any] | None, *, param: str) -> dict[str, Any]:
    """The fields of a chat request that `sampling_params` stand for; raise InvalidInput naming one that is wrong."""
    given = {name: value for name, value in (raw or {}).items() if value is not None}
    text = given.pop("text", None)
    if isinstance(text, dict) and set(text) <= {"format"}:
        given["response_format"] = _chat_format(text.get("format"), f"{param}.text.format")
    elif text is not None:
        raise InvalidInput(f"{param}.text has a format and nothing else", param=f"{param}.text")
    try:
        read = msgspec.convert(given, SamplingParams)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{param}: {error}", param=param) from error
    limits = (read.max_completion_tokens, read.max_completions_tokens, read.max_tokens)
    fields: dict[str, Any] = {"temperature": read.temperature, "top_p": read.top_p, "seed": read.seed}
    fields["max_completion_tokens"] = next((limit for limit in limits if limit is not None), None)
    fields["response_format"] = read.response_format
    return {name: value for name, value in fields.items() if value is not None}


def check_output_fits(sampling: dict[str, Any], *, context: int, param: str) -> None:
    """Raise InvalidInput where what `read_sampling` gave asks for more tokens than the `context` has beside a prompt."""
    wanted = sampling.get("max_completion_tokens")
    if wanted is not None and wanted >= context:
        raise InvalidInput(
            f"{param}: max_completion_tokens is {wanted}, and prompt and answer have {context} tokens together; ask for fewer",
            code="context_length_exceeded",
            param=param,
        )


def _chat_format(raw: Any, param: str) -> dict[str, Any] | None:
    """The format of the responses API as chat has it: there the schema is in an object of its own."""
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise InvalidInput(f"{param} must be an object", param=param)
    if raw.get("type") != "json_schema":
        return raw
    return {"type": "json_schema", "json_schema": {name: value for name, value in raw.items() if name != "type"}}
