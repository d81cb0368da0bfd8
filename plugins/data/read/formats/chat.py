"""OpenAI's chat format: `messages`, with tools and tool calls, and `weight` 0 for answers that are not trained."""

from __future__ import annotations

from typing import Any

from tunery.plugins.data.read.formats.errors import InvalidRow, item_errors, json_type, misplaced_keys
from tunery.plugins.data.read.formats.messages import (
    from_json_text,
    message_errors,
    plain_messages,
    plain_tools,
    tool_errors,
)
from tunery.plugins.hookspecs import Conversation, FormatInfo

__all__ = ["CHAT"]

_KEYS = ("messages", "tools", "parallel_tool_calls")


def _sniff(row: dict[str, Any]) -> bool:
    return "messages" in row


def _chat(row: dict[str, Any]) -> Conversation:
    errors = misplaced_keys(row, _KEYS)
    messages, tools = row.get("messages"), from_json_text(row.get("tools"))
    errors += [] if tools is None else tool_errors("$.tools", tools)
    if not isinstance(row.get("parallel_tool_calls", True), bool):
        errors.append(("$.parallel_tool_calls", "must be true or false"))
    if not isinstance(messages, list) or not messages:
        raise InvalidRow(
            [*errors, ("$.messages", f"must be a list of at least one message, not {json_type(messages)}")]
        )
    errors += item_errors("$.messages", messages, message_errors)
    if not any(isinstance(message, dict) and message.get("role") == "assistant" for message in messages):
        errors.append(("$.messages", "has no assistant message, so nothing would be trained; add the answer"))
    if errors:
        raise InvalidRow(errors)
    return Conversation(messages=plain_messages(messages), tools=plain_tools(tools))


CHAT = FormatInfo(
    name="chat",
    summary='{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    sniff=_sniff,
    to_conversation=_chat,
    keys=_KEYS,
)
