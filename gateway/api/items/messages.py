"""Turns items into the messages of a chat.

One message of a chat holds what the assistant said in a turn and the functions that it called; here these are items of
their own, so neighbours are joined again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tunery.gateway.api.items.reading import Item

__all__ = ["to_messages"]

Message = dict[str, Any]


def to_messages(items: Iterable[Item], *, instructions: str | None = None) -> list[Message]:
    """The messages that a chat request would have for these items; `instructions` are a system message before them."""
    messages: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    for item in items:
        _ADD[item["type"]](messages, item)
    return messages


def _add_message(messages: list[Message], item: Item) -> None:
    text = "".join(part["text"] for part in item["content"])
    if item["role"] == "assistant" and messages and messages[-1].get("tool_calls"):
        messages[-1]["content"] += text
    else:
        messages.append({"role": item["role"], "content": text})


def _add_call(messages: list[Message], item: Item) -> None:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    function = {"name": item["name"], "arguments": item["arguments"]}
    call = {"id": item["call_id"], "type": "function", "function": function}
    messages[-1].setdefault("tool_calls", []).append(call)


def _add_output(messages: list[Message], item: Item) -> None:
    messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})


_ADD = {"message": _add_message, "function_call": _add_call, "function_call_output": _add_output}
