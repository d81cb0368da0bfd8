"""Owns saying what is wrong with a row: where, what, and how to fix it; the helpers that every format shares."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunery.plugins.data.render.conversation import MESSAGE_FIELDS, plain_message, read_arguments
from tunery.registry.errors import InvalidInput, near

__all__ = [
    "Faults",
    "RowInvalid",
    "from_json_text",
    "item_faults",
    "kind",
    "message_faults",
    "misplaced",
    "plain_messages",
    "plain_tools",
    "text_faults",
    "tool_faults",
    "unknown",
]

Faults = list[tuple[str, str]]
"""(JSON path, what is wrong and how to fix it)."""

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
_MEANING = (
    "system", "tools", "functions", "function_call", "tool_calls", "weight", "role", "content", "history", "instruction", "input"
)  # fmt: skip
"""Columns that would change what is trained, had the row's format a place for them."""
_MISSPELLED, _COLUMNS = 0.85, 100
"""How near to a known key an unknown one is that was meant to be it, and the columns that are compared."""
_MOST_ITEMS = 2000
_FAULTS, _KEYS_SHOWN = 20, 5
"""Faults of one list, and unknown keys of one object, that are described."""


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


def item_faults(path: str, items: Sequence[Any], faults_of: Callable[[str, Any], Faults]) -> Faults:
    """What is wrong with the items of a list, the first faults of them; a list that is too long is one fault."""
    if len(items) > _MOST_ITEMS:
        return [(path, f"has {len(items)} items, and a row may have {_MOST_ITEMS}; split the row")]
    found: Faults = []
    for index, item in enumerate(items):
        found += faults_of(f"{path}[{index}]", item)
        if len(found) >= _FAULTS:
            return [*found[:_FAULTS], (path, "may have more faults after these; mend them and check again")]
    return found


def message_faults(path: str, message: Any) -> Faults:
    """What is wrong with one message as OpenAI writes it."""
    if not isinstance(message, dict):
        return [(path, f"must be an object with role and content, not {kind(message)}")]
    role = message.get("role")
    found = unknown(path, message, (*_MESSAGE_KEYS, *_EMPTY_KEYS))
    found += [*_role_faults(path, message), *_weight_faults(path, message), *_filled_faults(path, message)]
    found += _said_faults(path, message)
    calls = message.get("tool_calls")
    if calls is not None and not (calls == [] and message.get("content")):
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
    """Valid messages with their contents as one text each and the arguments of calls as objects, without what is null."""
    return [plain_message(message) for message in messages]


def plain_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Valid functions without the nulls that a table puts into them; None for none."""
    return [_without_nulls(tool) for tool in tools] if tools else None


def from_json_text(value: Any) -> Any:
    """A value that may be written as JSON inside a text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def tool_faults(path: str, tools: Any) -> Faults:
    """What is wrong with a list of functions that the model may call."""
    if not isinstance(tools, list):
        return [(path, f"must be a list of functions, not {kind(tools)}")]
    return item_faults(path, tools, _tool_faults)


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
    """Keys with a value that the format does not have, with near ones."""
    extra = [key for key, value in row.items() if key not in known and value is not None]
    return _key_faults(path, extra, known)


def misplaced(row: Mapping[str, Any], known: tuple[str, ...]) -> Faults:
    """Columns that a format does not have and that cannot be ignored: misspelled ones, and ones that mean something in other rows.

    Any other column is ignored; the check `extra_column` names it.
    """
    extra = [key for key, value in row.items() if key not in known and value is not None]
    near_ones = (key for key in extra[:_COLUMNS] if difflib.get_close_matches(key[:60], known, n=1, cutoff=_MISSPELLED))
    extra = list(dict.fromkeys([*near_ones, *(key for key in extra if key in _MEANING)]))
    return _key_faults("$", extra, known)


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


def _key_faults(path: str, extra: list[str], known: tuple[str, ...]) -> Faults:
    shown = [
        (f"{path}.{key[:60]}", f"is not known here; {near(key[:60], known)} Or drop it") for key in extra[:_KEYS_SHOWN]
    ]
    if len(extra) > _KEYS_SHOWN:
        shown.append((path, f"has {len(extra) - _KEYS_SHOWN} more keys that are not known here; drop them"))
    return shown


def _tool_faults(path: str, tool: Any) -> Faults:
    function = tool.get("function") if isinstance(tool, dict) else None
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        return []
    return [(path, 'must be {"type": "function", "function": {"name": ..., ...}}')]


def _filled_faults(path: str, message: Mapping[str, Any]) -> Faults:
    return [(f"{path}.{key}", f"is not trained; {fix}") for key, fix in _EMPTY_KEYS.items() if fix and message.get(key)]


def _role_faults(path: str, message: Mapping[str, Any]) -> Faults:
    role = message.get("role")
    if role in _ROLES:
        return []
    hint = near(role, _ROLES) if isinstance(role, str) else "use one of " + ", ".join(_ROLES)
    return [(f"{path}.role", f"is {role!r}; {hint}" if "role" in message else "is missing; " + hint)]


def _weight_faults(path: str, message: Mapping[str, Any]) -> Faults:
    if message.get("weight") is None:
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
    return item_faults(path, calls, _call_faults)


def _call_faults(path: str, call: Any) -> Faults:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return [(path, 'must be {"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}')]
    found = unknown(path, call, _CALL_KEYS)
    if call.get("id") is not None and not isinstance(call["id"], str):
        found.append((f"{path}.id", f"must be a text, not {kind(call['id'])}"))
    if not isinstance(_arguments(function.get("arguments")), dict):
        found.append((f"{path}.function.arguments", "must be a JSON object, or one written as text"))
    return found


def _content_faults(path: str, content: Any) -> Faults:
    if isinstance(content, str):
        return []
    if not isinstance(content, list):
        return [(path, f"must be a text, not {kind(content)}")]
    return item_faults(path, content, _part_faults)


def _part_faults(path: str, part: Any) -> Faults:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return []
    return [(path, 'must be {"type": "text", "text": ...}; only text is trained')]


def _arguments(value: Any) -> Any:
    """The arguments of a call, which OpenAI writes as JSON inside a text; None where they are neither."""
    try:
        return read_arguments(value)
    except ValueError:
        return None


def _without_nulls(value: Any) -> Any:
    """A function without fields that are null; in a schema null is a value only where it is a default or a constant."""
    if isinstance(value, dict):
        return {
            name: item if name in ("default", "const") else _without_nulls(item)
            for name, item in value.items()
            if item is not None or name in ("default", "const")
        }
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
