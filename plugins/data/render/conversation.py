"""The one shape in which a chat template sees messages and tools, for training rows and served requests alike.

Fields that are null are absent, a content is one text, the arguments of a call are an object, and keys stand in one order, so that
the same conversation gives the same tokens however it was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = ["MESSAGE_FIELDS", "Message", "plain_message", "plain_tool", "read_arguments"]

Message = dict[str, Any]

MESSAGE_FIELDS = ("role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id")
"""What a message may say to a template, in the order in which it is passed on."""


_EMPTY = ("refusal", "annotations", "audio", "function_call")
"""What OpenAI's client writes into every message; where it says anything, the message is refused before."""


def plain_message(message: Mapping[str, Any]) -> Message:
    """The message as templates take it. A `weight`, and fields of a third party's format, follow the others."""
    given = {name: value for name, value in message.items() if value is not None and name not in _EMPTY}
    given["content"] = _text(given.get("content"))
    if "tool_calls" in given:
        given["tool_calls"] = [_call(index, call) for index, call in enumerate(given["tool_calls"])]
    if not given.get("tool_calls"):
        given.pop("tool_calls", None)
    if given.get("role") != "tool":
        given.pop("tool_call_id", None)
    known = {name: given.pop(name) for name in MESSAGE_FIELDS if name in given}
    return known | given


def plain_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool without the fields that are null; nulls inside its JSON schema mean something and stay."""
    kept = {name: value for name, value in tool.items() if value is not None}
    if isinstance(function := kept.get("function"), Mapping):
        kept["function"] = {name: value for name, value in function.items() if value is not None}
    return kept


def read_arguments(given: Any) -> dict[str, Any]:
    """The arguments of a call, an object or JSON inside a text; raise ValueError where they are neither. None are none."""
    if isinstance(given, dict):
        return given
    if given is None or given == "":
        return {}
    if not isinstance(given, str):
        raise ValueError("it is neither an object nor a text")
    try:
        found: dict[str, Any] = msgspec.json.decode(given, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return found


def _text(content: Any) -> str:
    if isinstance(content, list | tuple):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    return content or ""


def _call(index: int, call: Mapping[str, Any]) -> Message:
    function = call["function"]
    arguments = read_arguments(function.get("arguments"))
    return {
        "id": call.get("id") or f"call_{index}",
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
