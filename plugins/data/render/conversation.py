"""The one shape in which a chat template sees messages and tools, for training rows and served requests alike.

Null fields are absent, a content is one text, the arguments of a call are an object, and keys have a fixed order, so
that the same conversation gives the same tokens however it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

__all__ = [
    "MESSAGE_FIELDS",
    "Message",
    "map_message",
    "map_texts",
    "message_texts",
    "plain_message",
    "plain_tool",
    "read_arguments",
]

Message = dict[str, Any]
"""A message as OpenAI writes it: `role`, `content` and so on."""

MESSAGE_FIELDS = ("role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id")
"""Fields of a message that templates see, in the order in which they get them."""

_EMPTY = ("refusal", "annotations", "audio", "function_call")
"""Fields that OpenAI's client writes into every message; a message where they are not empty is refused earlier."""


def plain_message(message: Mapping[str, Any]) -> Message:
    """The message as templates take it. Other fields, such as `weight`, follow those of MESSAGE_FIELDS."""
    fields = {name: value for name, value in message.items() if value is not None and name not in _EMPTY}
    fields["content"] = _text(fields.get("content"))
    if "tool_calls" in fields:
        fields["tool_calls"] = [_call(index, call) for index, call in enumerate(fields["tool_calls"])]
    if not fields.get("tool_calls"):
        fields.pop("tool_calls", None)
    if fields.get("role") != "tool":
        fields.pop("tool_call_id", None)
    ordered = {name: fields.pop(name) for name in MESSAGE_FIELDS if name in fields}
    return ordered | fields


def plain_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool without null fields; nulls inside its JSON schema are values and stay."""
    kept = {name: value for name, value in tool.items() if value is not None}
    if isinstance(function := kept.get("function"), Mapping):
        kept["function"] = {name: value for name, value in function.items() if value is not None}
    return kept


def read_arguments(value: Any) -> dict[str, Any]:
    """The arguments of a call, given as an object or as JSON text; {} for None. Raises ValueError for anything else."""
    if isinstance(value, dict):
        return value
    if value is None or value == "":
        return {}
    if not isinstance(value, str):
        raise ValueError("it is neither an object nor a text")
    try:
        arguments: dict[str, Any] = msgspec.json.decode(value, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return arguments


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` applied to every text in it, names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(name)): map_texts(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_texts(item, change) for item in value]
    return value


def map_message(message: Message, change: Callable[[str], str]) -> Message:
    """The message with `change` applied to every text in it but its role, which templates compare."""
    return {name: item if name == "role" else map_texts(item, change) for name, item in message.items()}


def message_texts(message: Message) -> list[str]:
    """Every text in the message, names of fields included."""
    texts: list[str] = []

    def keep(text: str) -> str:
        texts.append(text)
        return text

    map_message(message, keep)
    return texts


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
