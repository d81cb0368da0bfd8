"""The rule `tool_call`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.plugins.data.checks.check_rows import check, places_of


def call(name: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": "{}"}, **more}]}


ASK, DONE = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TOOLS = [{"type": "function", "function": {"name": "now"}}]


@pytest.mark.parametrize(
    ("messages", "tools", "expected"),
    [
        ([ASK, call("now", id="c"), {"role": "tool", "tool_call_id": "c", "content": "1"}, DONE], TOOLS, []),
        ([ASK, call("now"), {"role": "tool", "tool_call_id": "c", "content": "1"}, DONE], TOOLS, []),
        ([ASK, call("now", id="c"), {"role": "tool", "content": "1"}, DONE], TOOLS, []),
        ([ASK, call("now")], TOOLS, []),
        ([ASK, call("then")], TOOLS, [("$.messages[1]", "error")]),
        ([ASK, call("now")], None, [("$.messages[1]", "warning")]),
        ([ASK, {"role": "tool", "tool_call_id": "c", "content": "1"}, DONE], TOOLS, [("$.messages[1]", "error")]),
        ([ASK, call("now", id="c"), {"role": "tool", "tool_call_id": "d", "content": "1"}, DONE], TOOLS,
         [("$.messages[2]", "error"), ("$.messages[3]", "warning")]),
        ([ASK, call("now", id="c"), *[{"role": "tool", "tool_call_id": "c", "content": "1"}] * 2, DONE], TOOLS,
         [("$.messages[3]", "error")]),
        ([ASK, call("now", id="c"), ASK, DONE], TOOLS, [("$.messages[2]", "warning")]),
    ],
)  # fmt: skip
def test_calls_and_results_belong_together(
    tmp_path: Path, messages: list[Any], tools: Any, expected: list[tuple[str, str]]
) -> None:
    report = check(tmp_path, {"messages": messages, "tools": tools})
    assert [(path, severity) for _, _, path, severity in places_of(report, "tool_call")] == expected
