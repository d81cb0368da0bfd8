"""Owns one choice of a chat answer while it is said: what is text, what is a call, and how it ends."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from tunery.gateway.api.request.tools import Tooling
from tunery.gateway.api.response.generation import Piece
from tunery.gateway.api.response.tool_call_parser import Call, CallParser
from tunery.gateway.api.schemas.responses import ChatMessage, FunctionCall, ToolCall

__all__ = ["NOTHING", "Said", "Turn", "greeting", "message", "parts"]

Said = str | ToolCall


class Turn:
    """Reads a choice's pieces; `call_id` begins the ids of its calls."""

    def __init__(self, tooling: Tooling, call_id: str) -> None:
        names = frozenset(function.name for function in tooling.functions)
        self._parser = CallParser(names, parallel=tooling.parallel, only_calls=tooling.required) if names else None
        self._call_id = call_id
        self._calls = 0
        self.finish: str | None = None

    def push(self, piece: Piece) -> list[Said]:
        """What a piece made certain: texts, and whole calls."""
        if self._parser is None:
            self.finish = piece.finish
            return [piece.text] if piece.text else []
        said = self._parser.push(piece.text)
        if piece.finish is not None:
            said += self._parser.end()
        found = [one if isinstance(one, str) else self._numbered(one) for one in said]
        self.finish = "tool_calls" if piece.finish == "stop" and self._calls else piece.finish
        return found

    def _numbered(self, call: Call) -> ToolCall:
        index, self._calls = self._calls, self._calls + 1
        function = FunctionCall(name=call.name, arguments=call.arguments)
        return ToolCall(index=index, id=f"{self._call_id}_{index}", type="function", function=function)


def message(said: list[Said]) -> ChatMessage:
    """A whole answer; without content when it is only calls."""
    text = "".join(one for one in said if isinstance(one, str))
    # Only parts of a stream are numbered.
    calls = [msgspec.structs.replace(one, index=UNSET) for one in said if isinstance(one, ToolCall)]
    return ChatMessage(
        role="assistant", content=None if calls and not text else text, refusal=None, tool_calls=calls or UNSET
    )


def parts(said: list[Said]) -> list[ChatMessage]:
    """Texts and calls as parts of a streamed message: of a call its name first, then its arguments."""
    return [
        delta for one in said for delta in ([ChatMessage(content=one)] if isinstance(one, str) else _call_parts(one))
    ]


def greeting(tooling: Tooling) -> ChatMessage:
    """The first part of a streamed message. Where functions can be called there may be no content at all."""
    content = None if tooling.functions else ""
    return ChatMessage(role="assistant", content=content)


def _call_parts(call: ToolCall) -> list[ChatMessage]:
    name = msgspec.structs.replace(call, function=FunctionCall(name=call.function.name, arguments=""))
    arguments = ToolCall(index=call.index, function=FunctionCall(arguments=call.function.arguments))
    return [ChatMessage(tool_calls=[name]), ChatMessage(tool_calls=[arguments])]


NOTHING = ChatMessage()
"""A part that only ends the message."""
