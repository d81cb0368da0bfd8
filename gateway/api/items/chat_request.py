"""Translates a Responses request into the chat request that means the same, and chat's errors back."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from tunery.gateway.api.schemas.items import ResponseRequest
from tunery.gateway.api.schemas.requests import ChatRequest
from tunery.registry.errors import InvalidInput

__all__ = ["TOOL_PLACE", "chat_request", "naming_fields_of_responses"]

TOOL_PLACE = "tools[{}]"
"""Where a function stands in `tools`."""

_SAME = (
    "model", "adapter", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "seed", "stop", "parallel_tool_calls", "chat_template_kwargs",
)  # fmt: skip
"""Fields that both requests have, with the same meaning."""
_FUNCTION_FIELDS = ("name", "description", "parameters", "strict")
_SILENT = ("type", "allowed_callers", "output_schema", "cache_control")
"""Fields of a tool that no prompt shows."""

_PARAMS = {"messages": "input", "response_format": "text", "reasoning_effort": "reasoning"}
_WORDS = (
    (re.compile(r"\bresponse_format(\.json_schema)?\b"), "text.format"),
    (re.compile(r"\breasoning_effort\b"), "reasoning.effort"),
)
"""Chat's names of fields, and those of Responses."""


def chat_request(data: ResponseRequest, messages: list[dict[str, Any]]) -> ChatRequest:
    """The chat request for `messages` that asks for the same; raise InvalidInput for tools that are not functions."""
    logprobs = "message.output_text.logprobs" in (data.include or ()) or bool(data.top_logprobs)
    form = data.text.format if data.text else None
    return ChatRequest(
        messages=messages,
        max_completion_tokens=data.max_output_tokens,
        logprobs=logprobs,
        top_logprobs=data.top_logprobs if logprobs else None,
        tools=[_tool(f"tools[{at}]", tool) for at, tool in enumerate(data.tools or [])],
        tool_choice=_tool_choice(data.tool_choice),
        response_format=form and _response_format(form),
        reasoning_effort=data.reasoning.effort if data.reasoning else None,
        **{name: getattr(data, name) for name in _SAME},
    )


@contextlib.contextmanager
def naming_fields_of_responses() -> Iterator[None]:
    """Let errors of chat's code name the fields as a Responses request has them."""
    try:
        yield
    except InvalidInput as error:
        message, param = error.message, error.param or ""
        for pattern, name in _WORDS:
            message = pattern.sub(name, message)
        raise InvalidInput(message, code=error.code, param=_PARAMS.get(param, param) or None) from error


def _tool(where: str, tool: Any) -> dict[str, Any]:
    """A tool as chat has it: the same keys in the same order, however the client wrote them."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or kind != "function":
        raise InvalidInput(
            f"{where} is of type {str(kind)[:50]!r}, which is not supported; only functions are",
            code="unsupported_tool",
            param="tools",
        )
    for name, value in tool.items():
        if value and name not in _FUNCTION_FIELDS and name not in _SILENT:
            raise InvalidInput(
                f"{where}.{name[:80]} is not supported; a function has {', '.join(_FUNCTION_FIELDS)}",
                code="unsupported_parameter",
                param="tools",
            )
    function = {name: tool[name] for name in _FUNCTION_FIELDS if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function" or not isinstance(choice.get("name"), str):
        raise InvalidInput(
            f"tool_choice is of type {str(choice.get('type'))[:50]!r}; it is none, auto, required, or "
            '{"type": "function", "name": …}',
            code="unsupported_tool_choice",
            param="tool_choice",
        )
    return {"type": "function", "function": {"name": choice["name"]}}


def _response_format(form: dict[str, Any]) -> dict[str, Any]:
    """`text.format` as chat's `response_format`, which nests what belongs to a schema."""
    kind = form.get("type") or "text"
    if kind != "json_schema":
        return {"type": kind}
    return {"type": kind, "json_schema": {name: value for name, value in form.items() if name != "type"}}
