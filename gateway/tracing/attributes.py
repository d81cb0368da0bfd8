"""What a request's span says of it: OpenTelemetry's attributes for generative AI and for HTTP, and Tunery's own.

Names are those of the semantic conventions 1.41 (generative AI: in development). Prompts and answers are never among
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery.gateway.api.http.trace import Trace

__all__ = ["OPERATIONS", "Value", "attributes_of", "name_of"]

Value = str | int | float | bool | list[str]

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""The conventions' name of what an endpoint does."""

_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "n": "choice.count",
    "stream": "stream",
}
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
MAX_STOP = 100
"""Characters of a stop string that are shown."""


def name_of(trace: Trace, *, method: str, route: str) -> str:
    """The span's name: `chat acme/support`, or `GET /v1/models` for what names no model."""
    return f"{OPERATIONS[route]} {trace.model}" if route in OPERATIONS and trace.model else f"{method} {route}"


def attributes_of(trace: Trace, *, method: str, route: str, status: int) -> Mapping[str, Value]:
    """The span's attributes."""
    found: dict[str, Value | None] = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
        "error.type": trace.error or (str(status) if status >= 400 else None),
        "tunery.request_id": trace.request_id,
        "tunery.tenant": trace.tenant,
        "tunery.key": trace.key,
    }
    if route in OPERATIONS and trace.model is not None:
        found |= {"gen_ai.operation.name": OPERATIONS[route], "gen_ai.provider.name": "tunery"} | _generation(trace)
    return {name: value for name, value in found.items() if value is not None}


def _generation(trace: Trace) -> dict[str, Value | None]:
    first = trace.first_token
    answered_by = f"{trace.adapter}@{trace.version}" if trace.version is not None else trace.adapter
    return {
        "gen_ai.request.model": trace.model,
        "gen_ai.response.model": answered_by or trace.model,
        "gen_ai.response.finish_reasons": [trace.finish_reason] if trace.finish_reason else None,
        "gen_ai.response.time_to_first_chunk": None if first is None else first - trace.started,
        "gen_ai.usage.input_tokens": trace.prompt_tokens,
        "gen_ai.usage.output_tokens": trace.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": trace.cached_tokens,
        "openai.response.system_fingerprint": trace.fingerprint,
        "tunery.adapter": trace.adapter,
        "tunery.digest": trace.digest,
    } | _options(trace)


def _options(trace: Trace) -> dict[str, Value | None]:
    """What the request asks for, as far as it says so itself."""

    def option(name: str) -> Any:
        return getattr(trace.options, name, None)

    stop = option("stop")
    limits = (option(name) for name in _LIMITS)
    return {
        "gen_ai.request.max_tokens": next((limit for limit in limits if limit is not None), None),
        "gen_ai.request.stop_sequences": [text[:MAX_STOP] for text in ([stop] if isinstance(stop, str) else stop)]
        if stop
        else None,
        **{f"gen_ai.request.{attribute}": option(name) for name, attribute in _OPTIONS.items()},
    }
