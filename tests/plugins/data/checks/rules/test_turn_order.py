"""The rule `turn_order`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.plugins.data.checks.check_rows import check, places_of


def turns(*said: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in said], **more}


def test_conversations_without_a_user_and_late_instructions(tmp_path: Path) -> None:
    report = check(
        tmp_path,
        turns(("system", "s"), ("user", "q"), ("assistant", "a")),
        turns(("system", "s"), ("assistant", "b")),
        turns(("user", "r"), ("system", "s"), ("assistant", "c")),
        turns(("system", "s"), ("developer", "t"), ("user", "u"), ("assistant", "d")),
    )
    assert places_of(report, "turn_order") == [
        ("rows.jsonl", 2, "$", "warning"),
        ("rows.jsonl", 3, "$.messages[1]", "warning"),
        ("rows.jsonl", 4, "$.messages[1]", "warning"),
    ]
