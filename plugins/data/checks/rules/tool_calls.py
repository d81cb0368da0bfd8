"""The rule `tool_call`: tool calls and their results must belong together, and to the tools of the row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tunery.plugins.data.checks.check import Check, Fault
from tunery.plugins.data.checks.parsed_record import ParsedRecord, message_path

__all__ = ["ToolCalls"]

_NUMBERED = re.compile(r"call_\d+")
"""The id that reading a row gives to a call without one."""


class ToolCalls(Check):
    """Calls of functions that are not on offer, results without a call, and calls without a result."""

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        row = record.row
        if row is None or not any(_uses_tools(messages) for messages in row.conversations):
            return
        offered = {tool["function"]["name"] for tool in row.tools} if row.tools else None
        # The two conversations of a preference row share their prompt, so a fault in it would be reported twice.
        faults: dict[tuple[str, str], Fault] = {}
        for messages in row.conversations:
            for fault in _conversation_faults(record, messages, offered):
                faults.setdefault((fault.path, fault.message), fault)
        yield from faults.values()


def _uses_tools(messages: Sequence[dict[str, Any]]) -> bool:
    return any(message["role"] == "tool" or message.get("tool_calls") for message in messages)


def _conversation_faults(
    record: ParsedRecord, messages: Sequence[dict[str, Any]], offered: set[str] | None
) -> Iterator[Fault]:
    """Faults of one conversation; `offered` are the names of the row's functions, None where it has no tools."""
    pending: list[str] = []
    for index, message in enumerate(messages):
        path, calls = message_path(record, index), message.get("tool_calls") or []
        if message["role"] == "tool":
            if not _take_call(message, pending):
                yield Fault(path, "is the result of no call before it", "add the call, or drop the result")
            continue
        if pending and message["role"] in ("user", "assistant"):
            yield Fault(path, f"comes before the result of {len(pending)} call(s)", "add a tool message", "warning")
        pending = [call["id"] for call in calls]
        if calls and offered is None:
            yield Fault(
                path, "calls a function, and the row has no tools", "add tools, as the prompt will have them", "warning"
            )
        names = sorted({call["function"]["name"] for call in calls} - (offered or set()))
        if offered is not None and names:
            yield Fault(path, f"calls {', '.join(names)[:200]}, which tools does not have", "add the function to tools")


def _take_call(result: dict[str, Any], pending: list[str]) -> bool:
    """Remove the call that a result answers from the `pending` ids; False where there is none."""
    wanted = result.get("tool_call_id")
    if wanted in pending:
        pending.remove(wanted)
        return True
    if pending and (wanted is None or _NUMBERED.fullmatch(pending[0])):
        pending.pop(0)
        return True
    return False
