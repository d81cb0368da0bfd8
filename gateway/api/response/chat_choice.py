"""Builds one choice of a chat response from its deltas: its text, its tool calls, and how it finishes."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import UNSET

from tunery.gateway.api.request.tools import ToolCalling
from tunery.gateway.api.response.generation import OutputDelta
from tunery.gateway.api.response.tool_call_parser import ParsedCall, ToolCallParser
from tunery.gateway.api.schemas.responses import ChatMessage, FunctionCall, ToolCall

__all__ = ["EMPTY", "ChatChoiceBuilder", "ContentPart", "first_message", "stream_messages", "whole_message"]

ContentPart = str | ToolCall
"""Text, or a whole tool call."""


class ChatChoiceBuilder:
    """Separates one choice's text from its tool calls. `call_id` begins the ids of its calls."""

    def __init__(self, tools: ToolCalling, call_id: str) -> None:
        names = frozenset(function.name for function in tools.functions)
        self._parser = ToolCallParser(names, parallel=tools.parallel, only_calls=tools.required) if names else None
        self._call_id = call_id
        self._calls = 0
        self.finish: str | None = None

    def push(self, delta: OutputDelta) -> list[ContentPart]:
        """Take a delta and return the parts that are certain now."""
        if self._parser is None:
            self.finish = delta.finish
            return [delta.text] if delta.text else []
        parsed = self._parser.push(delta.text)
        if delta.finish is not None:
            parsed += self._parser.end()
        parts = [part if isinstance(part, str) else self._tool_call(part) for part in parsed]
        self.finish = "tool_calls" if delta.finish == "stop" and self._calls else delta.finish
        return parts

    def _tool_call(self, call: ParsedCall) -> ToolCall:
        index, self._calls = self._calls, self._calls + 1
        function = FunctionCall(name=call.name, arguments=call.arguments)
        return ToolCall(index=index, id=f"{self._call_id}_{index}", type="function", function=function)


def whole_message(parts: Iterable[ContentPart]) -> ChatMessage:
    """The message of a whole response; its content is null when it only has tool calls."""
    parts = list(parts)
    text = "".join(part for part in parts if isinstance(part, str))
    # Calls have an index only in streams.
    calls = [msgspec.structs.replace(part, index=UNSET) for part in parts if isinstance(part, ToolCall)]
    return ChatMessage(
        role="assistant", content=None if calls and not text else text, refusal=None, tool_calls=calls or UNSET
    )


def first_message(tools: ToolCalling) -> ChatMessage:
    """The first part of a streamed message. Its content is null if the message may consist of tool calls only."""
    return ChatMessage(role="assistant", content=None if tools.functions else "")


def stream_messages(parts: Iterable[ContentPart]) -> list[ChatMessage]:
    """The parts of a streamed message. A tool call becomes two: its name, then its arguments."""
    return [message for part in parts for message in _stream_part(part)]


def _stream_part(part: ContentPart) -> list[ChatMessage]:
    if isinstance(part, str):
        return [ChatMessage(content=part)]
    name = msgspec.structs.replace(part, function=FunctionCall(name=part.function.name, arguments=""))
    arguments = ToolCall(index=part.index, function=FunctionCall(arguments=part.function.arguments))
    return [ChatMessage(tool_calls=[name]), ChatMessage(tool_calls=[arguments])]


EMPTY = ChatMessage()
"""The part of a streamed message that carries only a finish reason or log-probabilities."""
