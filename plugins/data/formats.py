"""Owns the built-in ways to write a training row: chat (`messages`) and prompt/completion; refuses rows it would have to guess at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery.plugins.hookspecs import FormatInfo
from tunery.registry.errors import InvalidInput, near

__all__ = ["CHAT", "PROMPT_COMPLETION", "RowInvalid"]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MESSAGE_KEYS = ("role", "content", "name", "tool_call_id")


class RowInvalid(InvalidInput):
    """Everything wrong with one row: `faults` are (JSON path, what is wrong and how to fix it)."""

    code = "invalid_row"

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {text}" for path, text in faults))
        self.faults = tuple(faults)


def _chat(row: dict[str, Any]) -> list[dict[str, Any]]:
    faults = _unknown("$", row, ("messages",))
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RowInvalid([*faults, ("$.messages", f"must be a list of at least one message, not {_kind(messages)}")])
    for index, message in enumerate(messages):
        faults += _message_faults(f"$.messages[{index}]", message)
    if not any(isinstance(message, dict) and message.get("role") == "assistant" for message in messages):
        faults.append(("$.messages", "has no assistant message, so nothing would be trained; add the answer"))
    if faults:
        raise RowInvalid(faults)
    return [{**message, "content": _text(message["content"])} for message in messages]


def _message_faults(path: str, message: Any) -> list[tuple[str, str]]:
    if not isinstance(message, dict):
        return [(path, f"must be an object with role and content, not {_kind(message)}")]
    faults = _unknown(path, message, _MESSAGE_KEYS)
    role = message.get("role")
    if role not in _ROLES:
        hint = near(role, _ROLES) if isinstance(role, str) else "use one of " + ", ".join(_ROLES)
        faults.append((f"{path}.role", f"is {role!r}; {hint}" if "role" in message else "is missing; " + hint))
    if "content" not in message:
        return [*faults, (f"{path}.content", "is missing; write the text")]
    faults += _content_faults(f"{path}.content", message["content"])
    if role == "assistant" and not faults and not _text(message["content"]).strip():
        faults.append(
            (f"{path}.content", "is empty, so the model would learn to say nothing; write the answer or drop the row")
        )
    return faults


def _content_faults(path: str, content: Any) -> list[tuple[str, str]]:
    if isinstance(content, str):
        return []
    if not isinstance(content, list):
        return [(path, f"must be a text, not {_kind(content)}")]
    faults = []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            faults.append((f"{path}[{index}]", 'must be {"type": "text", "text": ...}; only text is trained'))
    return faults


def _prompt_completion(row: dict[str, Any]) -> list[dict[str, Any]]:
    faults = _unknown("$", row, ("prompt", "completion"))
    for name in ("prompt", "completion"):
        value = row.get(name)
        if not isinstance(value, str):
            state = f"must be a text, not {_kind(value)}" if name in row else "is missing; write the text"
            faults.append((f"$.{name}", state))
        elif not value.strip():
            faults.append((f"$.{name}", "is empty; write the text or drop the row"))
    if faults:
        raise RowInvalid(faults)
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


def _unknown(path: str, row: Mapping[str, Any], known: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(f"{path}.{key}", f"is not known here; {near(key, known)} Or drop it") for key in row if key not in known]


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _kind(value: Any) -> str:
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


CHAT = FormatInfo(
    name="chat",
    summary='{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    sniff=lambda row: "messages" in row,
    to_conversation=_chat,
)
PROMPT_COMPLETION = FormatInfo(
    name="prompt-completion",
    summary='{"prompt": "...", "completion": "..."}, rendered as one user and one assistant turn',
    sniff=lambda row: "prompt" in row or "completion" in row,
    to_conversation=_prompt_completion,
)
