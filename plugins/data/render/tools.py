"""Tool calling for any chat template: which format a template uses for calls, and tools as plain text where it has
none.

A template without tools gets them as text in the Hermes format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

from tunery.plugins.data.render.conversation import Message

__all__ = ["CallStyle", "PROBE", "as_text", "call_style", "with_short_ids"]

CallStyle = Literal["hermes", "llama", "mistral"]
"""hermes: `<tool_call>{"name": …, "arguments": …}</tool_call>`; llama: `{"name": …, "parameters": …}` alone; mistral:
`[TOOL_CALLS] [{"name": …, "arguments": …}, …]`."""

PROBE: Message = {
    "type": "function",
    "function": {"name": "a_probe", "description": "", "parameters": {"type": "object", "properties": {}}},
}
"""A tool that shows whether a template writes tools at all."""

_INSTRUCTIONS = """\
You may call functions to help with what the user asks. These are the functions, one a line:
<tools>
{tools}
</tools>
To call one, write its name and its arguments as a JSON object:
<tool_call>
{{"name": <name>, "arguments": <arguments>}}
</tool_call>"""


def call_style(template: str) -> CallStyle:
    """The format of calls that a template with tools asks for, recognised from its source."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    return "llama" if '"parameters"' in template and "<tool_call>" not in template else "hermes"


def as_text(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation without tools: the system message describes them, and calls stand in the text of messages.

    Results become user messages, since few templates know another role.
    """
    written: list[Message] = []
    for is_result, group in groupby(messages, lambda message: bool(message["role"] == "tool")):
        if is_result:
            written.append({"role": "user", "content": "\n".join(map(_result, group))})
        else:
            written += map(_message, group)
    return _with_instructions(written, tools) if tools else written


def with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """The conversation with call ids as Mistral's templates require them: nine letters and digits."""
    return [
        message
        | ({"tool_call_id": _short(message["tool_call_id"])} if message.get("tool_call_id") else {})
        | (
            {"tool_calls": [{**call, "id": _short(call["id"])} for call in calls]}
            if (calls := message.get("tool_calls"))
            else {}
        )
        for message in messages
    ]


def _short(call_id: str) -> str:
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _message(message: Message) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message
    texts = [message.get("content") or "", *map(_call, calls)]
    weight = {"weight": message["weight"]} if "weight" in message else {}
    return {"role": message["role"], "content": "\n".join(filter(None, texts)), **weight}


def _call(call: Mapping[str, Any]) -> str:
    function = call["function"]
    return f"<tool_call>\n{_json({'name': function['name'], 'arguments': function['arguments']})}\n</tool_call>"


def _result(message: Message) -> str:
    return f"<tool_response>\n{message['content']}\n</tool_response>"


def _with_instructions(messages: list[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation with the tools at the end of its system message, or in a new one."""
    text = _INSTRUCTIONS.format(tools="\n".join(map(_json, tools)))
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
