"""Owns OpenAI's chat format: `messages`, with functions, calls of them, and `weight` 0 for answers that are not trained."""

from __future__ import annotations

from typing import Any

from tunery.plugins.data.formats.faults import RowInvalid, kind, message_faults, plain_messages, tool_faults, unknown
from tunery.plugins.hookspecs import Conversation, FormatInfo

__all__ = ["CHAT"]


def _sniff(row: dict[str, Any]) -> bool:
    return "messages" in row


def _chat(row: dict[str, Any]) -> Conversation:
    faults = unknown("$", row, ("messages", "tools", "parallel_tool_calls"))
    messages, tools = row.get("messages"), row.get("tools")
    faults += [] if tools is None else tool_faults("$.tools", tools)
    if not isinstance(row.get("parallel_tool_calls", True), bool):
        faults.append(("$.parallel_tool_calls", "must be true or false"))
    if not isinstance(messages, list) or not messages:
        raise RowInvalid([*faults, ("$.messages", f"must be a list of at least one message, not {kind(messages)}")])
    for index, message in enumerate(messages):
        faults += message_faults(f"$.messages[{index}]", message)
    if not any(isinstance(message, dict) and message.get("role") == "assistant" for message in messages):
        faults.append(("$.messages", "has no assistant message, so nothing would be trained; add the answer"))
    if faults:
        raise RowInvalid(faults)
    return Conversation(messages=plain_messages(messages), tools=tools or None)


CHAT = FormatInfo(
    name="chat",
    summary='{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    sniff=_sniff,
    to_conversation=_chat,
)
