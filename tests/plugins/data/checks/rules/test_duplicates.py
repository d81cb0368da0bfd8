"""The rules that compare rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.plugins.data.checks.check_rows import LONG, chat, check, places_of


def test_duplicates_and_conflicts(tmp_path: Path) -> None:
    report = check(tmp_path, chat("a", "b"), chat(" a", "b"), chat("a", "c"), chat("d", "b"), chat("a", "b", weight=1))
    assert places_of(report, "duplicate") == [("rows.jsonl", 2, "$", "error"), ("rows.jsonl", 5, "$", "error")]
    assert places_of(report, "conflicting_answers") == [("rows.jsonl", 3, "$", "error")]
    assert "rows.jsonl:1" in report.findings[0].message


def test_a_prompt_may_have_many_pairs_but_no_answer_that_is_better_and_worse(tmp_path: Path) -> None:
    def pair(chosen: str, rejected: str, prompt: str = "q") -> dict[str, Any]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    report = check(
        tmp_path,
        pair("a", "b"),
        pair("a", "c"),
        pair("b", "c"),
        pair("c", "d"),
        pair("b", "a", prompt="r"),
        pair("e", "a"),
    )
    conflicts = [finding for finding in report.findings if finding.rule == "conflicting_answers"]
    assert [(finding.line, finding.message) for finding in conflicts] == [
        (3, "prefers an answer that rows.jsonl:1 rejects to the same prompt"),
        (4, "prefers an answer that rows.jsonl:2 rejects to the same prompt"),
        (6, "rejects an answer that rows.jsonl:1 prefers to the same prompt"),
    ]


def test_near_duplicates_are_warned_of_and_exact_ones_are_not_reported_twice(tmp_path: Path) -> None:
    near = LONG.replace("today", "now")
    other = "My invoice of last month lists a fee that nobody can explain to me and I would like to have it back"
    report = check(
        tmp_path, chat(LONG, "Off."), chat(near, "Off."), chat(LONG, "Off."), chat(other, "Off."), chat("so", "on")
    )
    assert places_of(report, "near_duplicate") == [("rows.jsonl", 2, "$", "warning")]
    assert places_of(report, "duplicate") == [("rows.jsonl", 3, "$", "error")]


def test_leakage(tmp_path: Path) -> None:
    val = (chat(LONG, "Off."), chat("fresh", "On."), chat(LONG.replace("today", "now"), "Off."), chat("a", "other"))
    report = check(tmp_path, chat(LONG, "Off."), chat("a", "b"), val=val)
    assert places_of(report, "leakage") == [("val.jsonl", line, "$", "error") for line in (1, 3, 4)]
    assert places_of(report, "duplicate") == places_of(report, "conflicting_answers") == []


def test_conflicts_that_differ_in_case_or_spaces_are_warnings(tmp_path: Path) -> None:
    rows = (
        chat("Reset my password?", "Yes."),
        chat("reset my  password ?", "No."),
        chat("RESET my password?", "yes."),
        chat("Reset my password?", "Never."),
    )
    assert places_of(check(tmp_path, *rows), "conflicting_answers") == [
        ("rows.jsonl", 2, "$", "warning"),
        ("rows.jsonl", 4, "$", "error"),
    ]
