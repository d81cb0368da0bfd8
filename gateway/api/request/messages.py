"""Reads a conversation: checks each message, joins its content, and parses the arguments of its tool calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tunery.plugins.data.render.conversation import MESSAGE_FIELDS, plain_message, read_arguments
from tunery.registry.errors import InvalidInput, near_or

__all__ = ["FUNCTION_NAME", "read_messages"]

ROLES = ("system", "developer", "user", "assistant", "tool")
FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")

SILENT = ("weight", "parsed", "annotations", "cache_control")
"""Fields that a message may have and no prompt shows: a training weight, parsed content, citations, a cache hint."""

Message = dict[str, Any]


def read_messages(raw: Sequence[Message]) -> list[Message]:
    """The messages as chat templates take them; raise InvalidInput naming the message and field that is wrong.

    A tool message with a `tool_call_id` answers an earlier call; one without is a turn of its own, as in training rows.
    """
    call_ids: set[str] = set()
    messages = []
    for index, message in enumerate(raw):
        read = _message(f"messages[{index}]", message, call_ids)
        call_ids |= {call["id"] for call in read.get("tool_calls", ())}
        messages.append(read)
    return messages


def _message(where: str, raw: Message, call_ids: set[str]) -> Message:
    fields = {name: value for name, value in raw.items() if value is not None}
    role = fields.get("role")
    if role not in ROLES:
        raise _wrong(f"{where}.role is {str(role)[:50]!r}; it is one of {', '.join(ROLES)}")
    if role == "assistant" and "content" not in fields and fields.get("refusal"):
        fields["content"] = fields.pop("refusal")
    _check_fields(where, fields)
    read: Message = {name: fields[name] for name in ("role", "name", "reasoning_content") if name in fields}
    if fields.get("tool_calls"):
        if role != "assistant":
            raise _wrong(f"{where} has tool_calls, which only assistant messages have")
        read["tool_calls"] = _calls(f"{where}.tool_calls", fields["tool_calls"])
    read["content"] = "" if "tool_calls" in read and "content" not in fields else _content(where, fields.get("content"))
    return plain_message(read | (_call_answered(where, raw, call_ids) if role == "tool" else {}))


def _check_fields(where: str, fields: Message) -> None:
    """Refuse by name fields that no chat template would see."""
    for name, value in fields.items():
        if name == "function_call" and value:
            raise _unsupported(f"{where}.function_call is not supported; use tool_calls")
        if name not in MESSAGE_FIELDS and name not in SILENT and value:
            hint = near_or(name[:80], MESSAGE_FIELDS, "leave it out")
            raise _unsupported(f"{where}.{name[:80]} is not supported; {hint}")
        if name in ("name", "reasoning_content") and not isinstance(value, str):
            raise _wrong(f"{where}.{name} must be a string")


def _call_answered(where: str, raw: Message, call_ids: set[str]) -> Message:
    """Which call a tool message answers, if it says so."""
    call_id = raw.get("tool_call_id")
    if call_id is None:
        return {}
    if not isinstance(call_id, str) or call_id not in call_ids:
        raise _wrong(f"{where}.tool_call_id is {str(call_id)[:80]!r}, which is not the id of an earlier tool call")
    return {"tool_call_id": call_id}


def _calls(where: str, raw: Any) -> list[Message]:
    if not isinstance(raw, list):
        raise _wrong(f"{where} must be a list of calls")
    calls = [_call(f"{where}[{index}]", call) for index, call in enumerate(raw)]
    if len({call["id"] for call in calls}) < len(calls):
        raise _wrong(f"{where} has the same id twice; give each call its own")
    return calls


def _call(where: str, raw: Any) -> Message:
    function = raw.get("function") if isinstance(raw, dict) else None
    if not isinstance(function, dict) or (raw.get("type") or "function") != "function":
        raise _wrong(f'{where} must be {{"id": …, "type": "function", "function": {{"name": …, "arguments": …}}}}')
    if not isinstance(raw.get("id"), str) or not raw["id"]:
        raise _wrong(f"{where}.id is missing; the result of the call names it as tool_call_id")
    name = function.get("name")
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise _wrong(f"{where}.function.name is {str(name)[:80]!r}; it is up to 64 letters, digits, '_' and '-'")
    arguments = _arguments(f"{where}.function.arguments", function.get("arguments"))
    return {"id": raw["id"], "type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(where: str, raw: Any) -> Message:
    try:
        return read_arguments(raw)
    except ValueError as error:
        raise _wrong(f"{where} must be a JSON object, or a string with one: {error}") from error


def _content(where: str, content: Any) -> str:
    if isinstance(content, list):
        return "".join(_part(f"{where}.content[{at}]", part) for at, part in enumerate(content))
    if not isinstance(content, str):
        raise _wrong(f"{where}.content is missing; it is text or a list of text parts")
    return content


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise _unsupported(f"{where} is of type {str(kind)[:50]!r}; only text is supported")
    text: str = part["text"]
    return text


def _wrong(message: str) -> InvalidInput:
    return InvalidInput(message, param="messages")


def _unsupported(message: str) -> InvalidInput:
    return InvalidInput(message, code="unsupported_parameter", param="messages")
