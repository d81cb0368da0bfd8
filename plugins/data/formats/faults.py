"""Owns saying what is wrong with a row: where, what, and how to fix it; the helpers that every format shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery.plugins.data.conversation import MESSAGE_FIELDS, plain_message, read_arguments
from tunery.registry.errors import InvalidInput, near

__all__ = ["Faults", "RowInvalid", "kind", "message_faults", "plain_messages", "text_faults", "tool_faults", "unknown"]

Faults = list[tuple[str, str]]
"""(JSON path, what is wrong and how to fix it)."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MESSAGE_KEYS = (*MESSAGE_FIELDS, "weight")
_CALL_KEYS = ("id", "type", "function")


class RowInvalid(InvalidInput):
    """Everything wrong with one row: `faults` are (JSON path, what is wrong and how to fix it); `rule` is the check they belong to."""

    code = "invalid_row"

    def __init__(self, faults: Faults, *, rule: str = "schema") -> None:
        super().__init__("; ".join(f"{path}: {text}" for path, text in faults))
        self.faults = tuple(faults)
        self.rule = rule

    def problems(self, place: str) -> list[str]:
        """Each fault as a line that begins with its place, such as `rows.jsonl:3`."""
        return [f"{place}: {path}: {text}" for path, text in self.faults]


def message_faults(path: str, message: Any) -> Faults:
    """What is wrong with one message as OpenAI writes it."""
    if not isinstance(message, dict):
        return [(path, f"must be an object with role and content, not {kind(message)}")]
    role = message.get("role")
    found = [*unknown(path, message, _MESSAGE_KEYS), *_role_faults(path, message), *_weight_faults(path, message)]
    found += _said_faults(path, message)
    if message.get("tool_calls") is not None:
        found += _calls_faults(f"{path}.tool_calls", message)
        if message.get("content") is None:
            return found
    if "content" not in message:
        return [*found, (f"{path}.content", "is missing; write the text")]
    found += _content_faults(f"{path}.content", message["content"])
    if role == "assistant" and not message.get("tool_calls") and not found and not _text(message["content"]).strip():
        found.append(
            (f"{path}.content", "is empty, so the model would learn to say nothing; write the answer or drop the row")
        )
    return found


def plain_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Valid messages with their contents as one text each and the arguments of calls as objects."""
    return [plain_message(message) for message in messages]


def tool_faults(path: str, tools: Any) -> Faults:
    """What is wrong with a list of functions that the model may call."""
    if not isinstance(tools, list):
        return [(path, f"must be a list of functions, not {kind(tools)}")]
    found: Faults = []
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            found.append((f"{path}[{index}]", 'must be {"type": "function", "function": {"name": ..., ...}}'))
    return found


def text_faults(row: Mapping[str, Any], *names: str) -> Faults:
    """What is wrong where `names` must be texts that say something."""
    found: Faults = []
    for name in names:
        value = row.get(name)
        if not isinstance(value, str):
            state = f"must be a text, not {kind(value)}" if name in row else "is missing; write the text"
            found.append((f"$.{name}", state))
        elif not value.strip():
            found.append((f"$.{name}", "is empty; write the text or drop the row"))
    return found


def unknown(path: str, row: Mapping[str, Any], known: tuple[str, ...]) -> Faults:
    """Keys that the format does not have, with near ones."""
    return [(f"{path}.{key}", f"is not known here; {near(key, known)} Or drop it") for key in row if key not in known]


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
    }
    if isinstance(value, list) and not value:
        return "an empty list"
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _role_faults(path: str, message: Mapping[str, Any]) -> Faults:
    role = message.get("role")
    if role in _ROLES:
        return []
    hint = near(role, _ROLES) if isinstance(role, str) else "use one of " + ", ".join(_ROLES)
    return [(f"{path}.role", f"is {role!r}; {hint}" if "role" in message else "is missing; " + hint)]


def _weight_faults(path: str, message: Mapping[str, Any]) -> Faults:
    if "weight" not in message:
        return []
    if message.get("role") != "assistant":
        return [(f"{path}.weight", "is for assistant messages only; drop it")]
    weight = message["weight"]
    if isinstance(weight, bool) or weight not in (0, 1):
        return [(f"{path}.weight", f"is {weight!r}; write 0 (not trained) or 1 (trained)")]
    return []


def _said_faults(path: str, message: Mapping[str, Any]) -> Faults:
    """What is wrong with the other texts of a message."""
    names = ("name", "reasoning_content", "tool_call_id")
    wrong = [name for name in names if not isinstance(message.get(name), str | None)]
    return [(f"{path}.{name}", f"must be a text, not {kind(message[name])}") for name in wrong]


def _calls_faults(path: str, message: Mapping[str, Any]) -> Faults:
    if message.get("role") != "assistant":
        return [(path, "is for assistant messages only; drop it")]
    calls = message["tool_calls"]
    if not isinstance(calls, list) or not calls:
        return [(path, f"must be a list of at least one call, not {kind(calls)}")]
    return [fault for index, call in enumerate(calls) for fault in _call_faults(f"{path}[{index}]", call)]


def _call_faults(path: str, call: Any) -> Faults:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return [(path, 'must be {"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}')]
    found = unknown(path, call, _CALL_KEYS)
    if "id" in call and not isinstance(call["id"], str):
        found.append((f"{path}.id", f"must be a text, not {kind(call['id'])}"))
    if not isinstance(_arguments(function.get("arguments")), dict):
        found.append((f"{path}.function.arguments", "must be a JSON object, or one written as text"))
    return found


def _content_faults(path: str, content: Any) -> Faults:
    if isinstance(content, str):
        return []
    if not isinstance(content, list):
        return [(path, f"must be a text, not {kind(content)}")]
    return [
        (f"{path}[{index}]", 'must be {"type": "text", "text": ...}; only text is trained')
        for index, part in enumerate(content)
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str)
    ]


def _arguments(value: Any) -> Any:
    """The arguments of a call, which OpenAI writes as JSON inside a text; None where they are neither."""
    try:
        return read_arguments(value)
    except ValueError:
        return None


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
