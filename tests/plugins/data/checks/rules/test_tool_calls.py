"""The rule `tool_call`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.plugins.data.checks.check_rows import check, places_of


def call(name: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": "{}"}, **more}]}


MESSAGES, DONE = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TOOLS = [{"type": "function", "function": {"name": "now"}}]


@pytest.mark.parametrize(
    ("messages", "tools", "expected"),
    [
        ([MESSAGES, call("now", id="c"), {"role": "tool", "tool_call_id": "c", "content": "1"}, DONE], TOOLS, []),
        ([MESSAGES, call("now"), {"role": "tool", "tool_call_id": "c", "content": "1"}, DONE], TOOLS, []),
        ([MESSAGES, call("now", id="c"), {"role": "tool", "content": "1"}, DONE], TOOLS, []),
        ([MESSAGES, call("now")], TOOLS, []),
        ([MESSAGES, call("then")], TOOLS, [("$.messages[1]", "error")]),
        ([MESSAGES, call("now")], None, [("$.messages[1]", "warning")]),
        ([MESSAGES, {"role": "tool", "tool_call_id": "c", "content": "1"}, DONE], TOOLS, [("$.messages[1]", "error")]),
        ([MESSAGES, call("now", id="c"), {"role": "tool", "tool_call_id": "d", "content": "1"}, DONE], TOOLS,
         [("$.messages[2]", "error"), ("$.messages[3]", "warning")]),
        ([MESSAGES, call("now", id="c"), *[{"role": "tool", "tool_call_id": "c", "content": "1"}] * 2, DONE], TOOLS,
         [("$.messages[3]", "error")]),
        ([MESSAGES, call("now", id="c"), MESSAGES, DONE], TOOLS, [("$.messages[2]", "warning")]),
    ],
)  # fmt: skip
def test_calls_and_results_belong_together(
    tmp_path: Path, messages: list[Any], tools: Any, expected: list[tuple[str, str]]
) -> None:
    report = check(tmp_path, {"messages": messages, "tools": tools})
    assert [(path, severity) for _, _, path, severity in places_of(report, "tool_call")] == expected
