"""The rule `diversity`."""

from __future__ import annotations

from pathlib import Path

from tests.plugins.data.checks.check_rows import chat, check
from tunery.plugins.data.checks.report import DataReport, Finding


def test_diversity_reports_refusals_sameness_and_openings(tmp_path: Path) -> None:
    def whole(report: DataReport) -> list[Finding]:
        return [finding for finding in report.findings if finding.rule == "diversity"]

    words = [f"{first}{last}" for first in ("amb", "del", "fjo", "gro") for last in ("er", "ta", "rd", "ve")] + ["reef"]
    varied = [
        chat(str(n), " ".join(words[(n * k + k * k) % 17] for k in range(1, 9)) + f" {n * 7919 % 1000}")
        for n in range(60)
    ]
    report = check(tmp_path, *varied)
    assert whole(report) == []
    figures = report.statistics["diversity"]
    assert figures["refusals"] == 0
    assert 0 < figures["distinct_1"] < figures["distinct_2"] <= figures["distinct_3"] <= 1
    same = check(tmp_path, *(chat(str(n), "I'm sorry, I cannot help with that today.") for n in range(60)))
    assert [(f.line, f.severity) for f in whole(same)] == [(0, "info"), *[(0, "warning")] * 3]
    assert same.statistics["diversity"]["refusals"] == 1
    assert same.statistics["diversity"]["top_openings"] == [{"text": "I'm sorry, I cannot", "share": 1.0}]
    assert same.statistics["diversity"]["compression_ratio"] > 10


def test_an_answer_that_many_rows_give_is_reported(tmp_path: Path) -> None:
    def same(text: str) -> list[tuple[int, str]]:
        rows = [chat(f"{n}?", text if n % 4 == 0 else f"{n} is the answer to {n * n} of {n**3}.") for n in range(96)]
        return [
            (f.line, f.severity)
            for f in check(tmp_path, *rows).findings
            if repr(text) in f.message and "are" in f.message
        ]

    assert same("Please ask the service desk.") == [(0, "warning")]
    assert same("billing") == [(0, "info")]
    assert same("7 is the answer to nothing much.") == [(0, "warning")]
