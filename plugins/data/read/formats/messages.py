"""Messages and tools as OpenAI writes them: what is wrong with them, and the one shape in which every format returns
them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunery.plugins.data.read.formats.faults import Fault, item_faults, json_type, not_one_of, unknown_keys
from tunery.plugins.data.render.conversation import MESSAGE_FIELDS, plain_message, read_arguments

__all__ = ["from_json_text", "message_faults", "plain_messages", "plain_tools", "tool_faults"]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MESSAGE_KEYS = (*MESSAGE_FIELDS, "weight")
_CALL_KEYS = ("id", "type", "function")
_EMPTY_KEYS = {
    "refusal": "write the refusal as content",
    "audio": "only text is trained; write what was said as content",
    "function_call": 'write it as tool_calls: [{"function": {"name": ..., "arguments": ...}}]',
    "annotations": "",
}
"""What OpenAI's client writes into every message, mostly null, and what to do where it is not."""


def message_faults(path: str, message: Any) -> list[Fault]:
    """What is wrong with one message in OpenAI's format."""
    if not isinstance(message, dict):
        return [Fault(path, f"must be an object with role and content, not {json_type(message)}")]
    role = message.get("role")
    faults = unknown_keys(path, message, (*_MESSAGE_KEYS, *_EMPTY_KEYS))
    faults += [*_role_faults(path, message), *_weight_faults(path, message), *_filled_faults(path, message)]
    faults += _text_field_faults(path, message)
    calls = message.get("tool_calls")
    if calls is not None and not (calls == [] and message.get("content")):
        faults += _calls_faults(f"{path}.tool_calls", message)
        if message.get("content") is None:
            return faults
    if "content" not in message:
        return [*faults, Fault(f"{path}.content", "is missing", "write the text")]
    faults += _content_faults(f"{path}.content", message["content"])
    if role == "assistant" and not message.get("tool_calls") and not faults and not _text(message["content"]).strip():
        faults.append(
            Fault(
                f"{path}.content",
                "is empty, so the model would learn to say nothing",
                "write the answer or drop the row",
            )
        )
    return faults


def plain_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Valid messages with each content as one text and the arguments of calls as objects, without null fields."""
    return [plain_message(message) for message in messages]


def plain_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Valid tools without the nulls that a table puts into them; None where there are none."""
    return [_without_nulls(tool) for tool in tools] if tools else None


def from_json_text(value: Any) -> Any:
    """The value of a field that may hold JSON as a string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def tool_faults(path: str, tools: Any) -> list[Fault]:
    """What is wrong with a list of functions that the model may call."""
    if not isinstance(tools, list):
        return [Fault(path, f"must be a list of functions, not {json_type(tools)}")]
    return item_faults(path, tools, _tool_faults)


def _tool_faults(path: str, tool: Any) -> list[Fault]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        return []
    return [Fault(path, 'must be {"type": "function", "function": {"name": ..., ...}}')]


def _filled_faults(path: str, message: Mapping[str, Any]) -> list[Fault]:
    return [
        Fault(f"{path}.{key}", "is not trained", fix) for key, fix in _EMPTY_KEYS.items() if fix and message.get(key)
    ]


def _role_faults(path: str, message: Mapping[str, Any]) -> list[Fault]:
    role = message.get("role")
    if role in _ROLES:
        return []
    return [not_one_of(f"{path}.role", role, _ROLES, is_given="role" in message)]


def _weight_faults(path: str, message: Mapping[str, Any]) -> list[Fault]:
    if message.get("weight") is None:
        return []
    if message.get("role") != "assistant":
        return [Fault(f"{path}.weight", "is for assistant messages only", "drop it")]
    weight = message["weight"]
    if isinstance(weight, bool) or weight not in (0, 1):
        return [Fault(f"{path}.weight", f"is {weight!r}", "write 0 (not trained) or 1 (trained)")]
    return []


def _text_field_faults(path: str, message: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with the other text fields of a message."""
    names = ("name", "reasoning_content", "tool_call_id")
    wrong = [name for name in names if not isinstance(message.get(name), str | None)]
    return [Fault(f"{path}.{name}", f"must be a text, not {json_type(message[name])}") for name in wrong]


def _calls_faults(path: str, message: Mapping[str, Any]) -> list[Fault]:
    if message.get("role") != "assistant":
        return [Fault(path, "is for assistant messages only", "drop it")]
    calls = message["tool_calls"]
    if not isinstance(calls, list) or not calls:
        return [Fault(path, f"must be a list of at least one call, not {json_type(calls)}")]
    return item_faults(path, calls, _call_faults)


def _call_faults(path: str, call: Any) -> list[Fault]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return [Fault(path, 'must be {"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}')]
    faults = unknown_keys(path, call, _CALL_KEYS)
    if call.get("id") is not None and not isinstance(call["id"], str):
        faults.append(Fault(f"{path}.id", f"must be a text, not {json_type(call['id'])}"))
    if not isinstance(_arguments(function.get("arguments")), dict):
        faults.append(Fault(f"{path}.function.arguments", "must be a JSON object, or one written as text"))
    return faults


def _content_faults(path: str, content: Any) -> list[Fault]:
    if isinstance(content, str):
        return []
    if not isinstance(content, list):
        return [Fault(path, f"must be a text, not {json_type(content)}")]
    return item_faults(path, content, _part_faults)


def _part_faults(path: str, part: Any) -> list[Fault]:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return []
    return [Fault(path, 'must be {"type": "text", "text": ...}', "only text is trained")]


def _arguments(value: Any) -> Any:
    """The arguments of a call, an object or (as OpenAI writes it) a JSON string; None where they are neither."""
    try:
        return read_arguments(value)
    except ValueError:
        return None


def _without_nulls(value: Any) -> Any:
    """A tool without null fields; in a JSON schema null is a value only as a default or a constant."""
    if isinstance(value, dict):
        return {
            name: item if name in ("default", "const") else _without_nulls(item)
            for name, item in value.items()
            if item is not None or name in ("default", "const")
        }
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
