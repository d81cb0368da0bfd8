"""OpenAI's chat format: `messages`, with tools and tool calls, and `weight` 0 for answers that are not trained."""

from __future__ import annotations

from typing import Any

from tunery.plugins.data.read.formats.faults import Fault, InvalidRow, item_faults, json_type, misplaced_keys
from tunery.plugins.data.read.formats.messages import (
    from_json_text,
    message_faults,
    plain_messages,
    plain_tools,
    tool_faults,
)
from tunery.plugins.hookspecs import Conversation, FormatInfo

__all__ = ["CHAT"]

_KEYS = ("messages", "tools", "parallel_tool_calls")


def _sniff(row: dict[str, Any]) -> bool:
    return "messages" in row


def _chat(row: dict[str, Any]) -> Conversation:
    faults = misplaced_keys(row, _KEYS)
    messages, tools = row.get("messages"), from_json_text(row.get("tools"))
    faults += [] if tools is None else tool_faults("$.tools", tools)
    if not isinstance(row.get("parallel_tool_calls", True), bool):
        faults.append(Fault("$.parallel_tool_calls", "must be true or false"))
    if not isinstance(messages, list) or not messages:
        raise InvalidRow(
            [*faults, Fault("$.messages", f"must be a list of at least one message, not {json_type(messages)}")]
        )
    faults += item_faults("$.messages", messages, message_faults)
    if not any(isinstance(message, dict) and message.get("role") == "assistant" for message in messages):
        faults.append(Fault("$.messages", "has no assistant message, so nothing would be trained", "add the answer"))
    if faults:
        raise InvalidRow(faults)
    return Conversation(messages=plain_messages(messages), tools=plain_tools(tools))


CHAT = FormatInfo(
    name="chat",
    summary='{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    sniff=_sniff,
    to_conversation=_chat,
    keys=_KEYS,
)
