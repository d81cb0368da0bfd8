"""The ShareGPT format: `conversations` of turns `from` a human, a model or a function, with their `value`."""

from __future__ import annotations

from typing import Any

import msgspec

from tunery.plugins.data.read.formats.faults import (
    Fault,
    InvalidRow,
    item_faults,
    json_type,
    misplaced_keys,
    not_one_of,
    not_text,
    unknown_keys,
)
from tunery.plugins.data.read.formats.messages import (
    from_json_text,
    message_faults,
    plain_messages,
    plain_tools,
    tool_faults,
)
from tunery.plugins.hookspecs import Conversation, FormatInfo

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
    faults = misplaced_keys(row, _KEYS)
    turns, system = row.get("conversations"), row.get("system") or ""
    if not isinstance(turns, list) or not turns:
        raise InvalidRow(
            [*faults, Fault("$.conversations", f"must be a list of at least one turn, not {json_type(turns)}")]
        )
    faults += item_faults("$.conversations", turns, _turn_faults)
    if not isinstance(system, str):
        faults.append(Fault("$.system", f"must be a text, not {json_type(system)}"))
    tools = from_json_text(row.get("tools") or [])
    faults += tool_faults("$.tools", tools)
    if faults:
        raise InvalidRow(faults)
    messages = [_message(turn) for turn in turns]
    if system and messages[0]["role"] == "system":
        if messages[0]["content"].strip() != system.strip():
            raise InvalidRow(
                [Fault("$.system", "differs from the first turn, which is from system too", "keep one of the two")]
            )
    elif system:
        messages.insert(0, {"role": "system", "content": system})
    if not any(message["role"] == "assistant" for message in messages):
        raise InvalidRow(
            [Fault("$.conversations", "has no turn from gpt, so nothing would be trained", "add the answer")]
        )
    return Conversation(messages=plain_messages(messages), tools=plain_tools(tools))


def _turn_faults(path: str, turn: Any) -> list[Fault]:
    if not isinstance(turn, dict):
        return [Fault(path, f"must be an object with from and value, not {json_type(turn)}")]
    faults = unknown_keys(path, turn, ("from", "value", "weight"))
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in _FROM:
        return [*faults, not_one_of(f"{path}.from", speaker, _FROM, is_given="from" in turn)]
    if not isinstance(turn.get("value"), str):
        return [*faults, not_text(f"{path}.value", turn.get("value"), is_given="value" in turn)]
    if speaker == "function_call" and not _calls(turn["value"]):
        return [*faults, Fault(f"{path}.value", 'must be {"name": ..., "arguments": {...}} as text, or a list of such')]
    return faults + [
        msgspec.structs.replace(fault, path=fault.path.replace(".content", ".value"))
        for fault in message_faults(path, _message(turn))
    ]


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
