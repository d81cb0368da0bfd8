"""The rules `turn_order` and `tool_call`: conversations that nobody has, because an export lost or moved a message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tunery.plugins.data.checks.finding import Check, Fault
from tunery.plugins.data.checks.line import Line

__all__ = ["ToolCalls", "TurnOrder"]

_SYSTEM = ("system", "developer")
_NUMBERED = re.compile(r"call_\d+")
"""The id that reading a row gives to a call without one."""


class TurnOrder(Check):
    """Answers to nobody, and instructions that come when the conversation is under way."""

    def of_line(self, line: Line) -> Iterable[Fault]:
        if line.row is None:
            return
        roles = [message["role"] for message in line.row.messages]
        if "user" not in roles:
            yield Fault("$", "has no message of a user", "add what is answered, or drop the row")
        for index, role in enumerate(roles):
            if role in _SYSTEM and index > 0:
                yield Fault(
                    _path(line, index),
                    f"is a {role} message that does not come first, which few chat templates show",
                    "put all instructions into one at the beginning",
                )
                return


class ToolCalls(Check):
    """Calls of functions that are not on offer, results that answer no call, and calls without a result."""

    def of_line(self, line: Line) -> Iterable[Fault]:
        row = line.row
        if row is None or not any(
            m["role"] == "tool" or m.get("tool_calls") for said in row.conversations for m in said
        ):
            return
        offered = {tool["function"]["name"] for tool in row.tools} if row.tools else None
        found: dict[tuple[str, str], Fault] = {}
        for said in row.conversations:
            for fault in _faults(line, said, offered):
                found.setdefault((fault.path, fault.message), fault)
        yield from found.values()


def _faults(line: Line, messages: Sequence[dict[str, Any]], offered: set[str] | None) -> Iterator[Fault]:
    waiting: list[str] = []
    for index, message in enumerate(messages):
        path, calls = _path(line, index), message.get("tool_calls") or []
        if message["role"] == "tool":
            if not _answered(message, waiting):
                yield Fault(path, "is the result of no call before it", "add the call, or drop the result")
            continue
        if waiting and message["role"] in ("user", "assistant"):
            yield Fault(path, f"comes before the result of {len(waiting)} call(s)", "add a tool message", "warning")
        waiting = [call["id"] for call in calls]
        if calls and offered is None:
            yield Fault(
                path, "calls a function, and the row has no tools", "add tools, as the prompt will have them", "warning"
            )
        names = sorted({call["function"]["name"] for call in calls} - (offered or set()))
        if offered is not None and names:
            yield Fault(path, f"calls {', '.join(names)[:200]}, which tools does not have", "add the function to tools")


def _answered(message: dict[str, Any], waiting: list[str]) -> bool:
    """Whether a result belongs to a call that waits for one, which it then does no more."""
    wanted = message.get("tool_call_id")
    if wanted in waiting:
        waiting.remove(wanted)
        return True
    if waiting and (wanted is None or _NUMBERED.fullmatch(waiting[0])):
        waiting.pop(0)
        return True
    return False


def _path(line: Line, index: int) -> str:
    return f"$.messages[{index}]" if line.row and line.row.format == "chat" else "$"
