"""The page holds every finding and nothing that a row could have smuggled in."""

from __future__ import annotations

import re
from pathlib import Path

from tests.plugins.data.checks.check_rows import chat, check
from tunery.plugins.data.checks.report import KEPT, DataReport
from tunery.plugins.data.html_report import to_html

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;\u202e\u0007"


def test_hostile_rows_stay_text(tmp_path: Path) -> None:
    report = check(tmp_path, chat("a", EVIL + " Ã©Ã©"), {EVIL: 1}, *(chat(str(n), EVIL) for n in range(60)))
    page = to_html(report)
    assert any("<script>" in finding.message for finding in report.findings)
    assert "&lt;script&gt;" in page
    tags = set(re.findall(r"<(/?\w+)", page))
    assert not {"script", "img"} & tags
    assert not re.search(r"[\u202e\u0007\ud800-\udfff]", page)
    assert page.count('<td class="place">') == len(report.findings)
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page


def test_a_page_without_findings_says_so() -> None:
    page = to_html(DataReport([], {"files": [{"file": "a&b.jsonl", "rows": 2}]}))
    assert "Nothing was found." in page
    assert "a&amp;b.jsonl" in page
    assert "0 errors, 0 warnings, 0 notes" in page


def test_findings_that_are_only_counted_are_mentioned(tmp_path: Path) -> None:
    page = to_html(check(tmp_path, *[{"prompt": "a"}] * (KEPT + 7)))
    assert f"{KEPT + 7} errors, 0 warnings, 0 notes; 7 of them are only counted" in page
