"""The rule `schema`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.plugins.data.checks.check_rows import chat, check, places_of


def test_schema(tmp_path: Path) -> None:
    report = check(
        tmp_path, chat("a", "b"), b"[1]\n", {"messages": [{"role": "x"}]}, {"prompt": "q", "completion": "c"}
    )
    assert [at for at in places_of(report, "schema") if at[1] == 2] == [("rows.jsonl", 2, "$", "error")]
    assert {at[2] for at in places_of(report, "schema") if at[1] == 3} == {
        "$.messages[0].role",
        "$.messages[0].content",
        "$.messages",
    }
    assert places_of(report, "schema")[-1] == ("rows.jsonl", 4, "$", "error")
    assert report.statistics["files"] == [{"file": "rows.jsonl", "rows": 2, "format": "chat", "held_out": False}]


def test_a_file_that_was_cut_off_is_reported_and_the_rest_is_checked(tmp_path: Path) -> None:
    whole = json.dumps(chat("c", "d")).encode()
    report = check(tmp_path, chat("a", "b"), chat("a", "b"), whole[: len(whole) // 2])
    assert places_of(report, "duplicate") == [("rows.jsonl", 2, "$", "error")]
    (finding,) = [finding for finding in report.findings if finding.rule == "schema"]
    assert finding.line == 3
    assert "cut off" in finding.fix


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    assert places_of(check(tmp_path, b"\n \n"), "schema") == [("rows.jsonl", 0, "$", "error")]
