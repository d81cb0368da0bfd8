"""Refuses request fields that would silently have no effect.

One rule for every endpoint: a field that the request's type declares is applied, null means absent, `IGNORED` fields
never change an answer, and a `NEUTRAL` value asks for what happens anyway. Everything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

import msgspec
from litestar import Request

from tunery.registry.errors import InvalidInput, near_or

__all__ = ["IGNORED", "NEUTRAL", "check_body", "check_fields"]

IGNORED = frozenset(
    {
        "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
        "request_id", "include_obfuscation",
    }
)  # fmt: skip
"""Bookkeeping of the client or of OpenAI's own service, accepted with any value."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_special_tokens": (False,),
    "audio": (),
    "background": (False,),
    "cache_salt": (),
    "chat_template": (),
    "context_management": ([],),
    "continuous_usage_stats": (False,),
    "conversation": (),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "priority": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "thinking_token_budget": (),
    "truncation_side": ("left",),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "vllm_xargs": ({},),
    "web_search_options": (),
}
"""OpenAI's and vLLM's fields that are not supported, with the values that mean the same as leaving them out."""

NESTED: Mapping[str, tuple[str, ...]] = {
    "stream_options": ("include_usage",),
    "reasoning": ("effort", "summary", "generate_summary"),
    "text": ("format", "verbosity"),
}
"""Fields that are objects, held to the same rule, and what of them is applied."""

HINTS = {
    "add_special_tokens": "the chat template writes a chat's special tokens",
    "background": "wait for the answer, or stream it",
    "conversation": "use previous_response_id, and store: true in the response before",
    "chat_template": "adapters are served under the template they were trained with; send the rendered text to /v1/completions",
    "documents": "put them into a message",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "logits_processors": "use logit_bias, allowed_token_ids or bad_words",
    "use_beam_search": "use n and choose among the answers",
}


async def check_fields(request: Request[Any, Any, Any], kind: type[msgspec.Struct]) -> None:
    """Raise InvalidInput for the first field of the body that is not applied and would have an effect."""
    check_body(await request.body(), kind)


def check_body(body: bytes, kind: type[msgspec.Struct]) -> None:
    """As check_fields, for the bytes of a JSON object."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    _check(fields, kind.__struct_fields__, "")
    for name in NESTED:
        if name in kind.__struct_fields__ and name in fields and bytes(fields[name]) != b"null":
            _check(msgspec.json.decode(fields[name], type=dict[str, msgspec.Raw]), NESTED[name], f"{name}.")
    _check_objects(fields, kind, "")


def _check_objects(fields: Mapping[str, msgspec.Raw], kind: type[msgspec.Struct], where: str) -> None:
    """Check the fields whose type is a struct, at any depth: of them only what the struct declares may have a value."""
    for name, inner in _objects(kind).items():
        if name not in fields or bytes(fields[name]) == b"null":
            continue
        known = [field.encode_name for field in msgspec.structs.fields(inner)]
        nested = msgspec.json.decode(fields[name], type=dict[str, msgspec.Raw])
        for key, raw in nested.items():
            if key not in known and bytes(raw) != b"null":
                shown = f"{where}{name}.{key[:80]}"
                raise InvalidInput(
                    f"{shown} is not supported; {near_or(key[:80], known, 'leave it out')}",
                    code="unsupported_parameter",
                    param=shown,
                )
        _check_objects(nested, inner, f"{where}{name}.")


@cache
def _objects(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    """The fields of a type that are structs, or null, other than those in NESTED."""
    return {
        field.encode_name: each
        for field in msgspec.structs.fields(kind)
        if field.encode_name not in NESTED
        for each in (field.type, *get_args(field.type))
        if isinstance(each, type) and issubclass(each, msgspec.Struct)
    }


def _check(fields: Mapping[str, msgspec.Raw], applied: tuple[str, ...], where: str) -> None:
    for name, raw in fields.items():
        if name in applied or name in IGNORED or bytes(raw) == b"null":
            continue
        # No neutral value is long, so long values need not be parsed.
        if name in NEUTRAL and len(raw) < 100 and msgspec.json.decode(raw) in NEUTRAL[name]:
            continue
        hint = HINTS.get(name, "leave it out") if name in NEUTRAL else near_or(name[:80], applied, "leave it out")
        shown = f"{where}{name[:80]}"
        param = where.rstrip(".") or shown
        raise InvalidInput(f"{shown} is not supported; {hint}", code="unsupported_parameter", param=param)
