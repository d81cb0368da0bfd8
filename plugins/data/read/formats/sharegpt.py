"""The ShareGPT format: `conversations` of turns `from` a human, a model or a function, with their `value`."""

from __future__ import annotations

from typing import Any

from tunery.plugins.data.read.formats.errors import (
    InvalidRow,
    RowErrors,
    item_errors,
    json_type,
    misplaced_keys,
    unknown_keys,
)
from tunery.plugins.data.read.formats.messages import (
    from_json_text,
    message_errors,
    plain_messages,
    plain_tools,
    tool_errors,
)
from tunery.plugins.hookspecs import Conversation, FormatInfo
from tunery.registry.errors import near

__all__ = ["SHAREGPT"]

_KEYS = ("conversations", "system", "tools", "id", "source")
_FROM = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def _sniff(row: dict[str, Any]) -> bool:
    return "conversations" in row


def _sharegpt(row: dict[str, Any]) -> Conversation:
    errors = misplaced_keys(row, _KEYS)
    turns, system = row.get("conversations"), row.get("system") or ""
    if not isinstance(turns, list) or not turns:
        raise InvalidRow([*errors, ("$.conversations", f"must be a list of at least one turn, not {json_type(turns)}")])
    errors += item_errors("$.conversations", turns, _turn_errors)
    if not isinstance(system, str):
        errors.append(("$.system", f"must be a text, not {json_type(system)}"))
    tools = from_json_text(row.get("tools") or [])
    errors += tool_errors("$.tools", tools)
    if errors:
        raise InvalidRow(errors)
    messages = [_message(turn) for turn in turns]
    if system and messages[0]["role"] == "system":
        if messages[0]["content"].strip() != system.strip():
            raise InvalidRow(
                [("$.system", "differs from the first turn, which is from system too; keep one of the two")]
            )
    elif system:
        messages.insert(0, {"role": "system", "content": system})
    if not any(message["role"] == "assistant" for message in messages):
        raise InvalidRow([("$.conversations", "has no turn from gpt, so nothing would be trained; add the answer")])
    return Conversation(messages=plain_messages(messages), tools=plain_tools(tools))


def _turn_errors(path: str, turn: Any) -> RowErrors:
    if not isinstance(turn, dict):
        return [(path, f"must be an object with from and value, not {json_type(turn)}")]
    errors = unknown_keys(path, turn, ("from", "value", "weight"))
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in _FROM:
        hint = near(speaker, _FROM) if isinstance(speaker, str) else "use one of " + ", ".join(_FROM)
        return [*errors, (f"{path}.from", f"is {speaker!r}; {hint}" if "from" in turn else "is missing; " + hint)]
    if not isinstance(turn.get("value"), str):
        state = f"must be a text, not {json_type(turn['value'])}" if "value" in turn else "is missing; write the text"
        return [*errors, (f"{path}.value", state)]
    if speaker == "function_call" and not _calls(turn["value"]):
        return [*errors, (f"{path}.value", 'must be {"name": ..., "arguments": {...}} as text, or a list of such')]
    message_problems = message_errors(path, _message(turn))
    return errors + [(at.replace(".content", ".value"), text) for at, text in message_problems]


def _message(turn: dict[str, Any]) -> dict[str, Any]:
    weight = {"weight": turn["weight"]} if "weight" in turn else {}
    if turn["from"] == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(turn["value"]), **weight}
    return {"role": _FROM[turn["from"]], "content": turn["value"], **weight}


def _calls(text: str) -> list[dict[str, Any]]:
    """The calls in a text; [] where it holds anything else."""
    value = from_json_text(text)
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return []
    functions = [{"name": call["name"], "arguments": call.get("arguments", {})} for call in calls]
    return [{"id": f"call_{i}", "type": "function", "function": function} for i, function in enumerate(functions)]


SHAREGPT = FormatInfo(
    name="sharegpt",
    summary='{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    sniff=_sniff,
    to_conversation=_sharegpt,
    keys=_KEYS,
)
