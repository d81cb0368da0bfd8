"""Every rule finds the fault that was planted for it, and nothing where there is none."""

from __future__ import annotations

from pathlib import Path

from tests.plugins.data.checks.check_rows import PLUGINS, chat, check
from tunery.plugins.data.checks import CHECKS


def test_good_rows_have_no_findings_by_any_rule(tmp_path: Path, tiny_base_folder: Path) -> None:
    report = check(
        tmp_path,
        chat("How are you?", "Well."),
        chat("And you?", "Too."),
        val=(chat("Who?", "Me."),),
        base=tiny_base_folder,
    )
    assert report.findings == []
    assert report.errors == []


def test_every_rule_says_what_and_how_to_fix_it(tmp_path: Path, tiny_base_folder: Path) -> None:
    """Each rule but the figures is set off in this file; the tests below say where."""
    assert {info.name for info in CHECKS} == set(PLUGINS.checks())
    report = check(tmp_path, b"[]\n", chat("a", "b"), chat("a", "b"), chat("a", "c"), base=tiny_base_folder)
    assert {finding.rule for finding in report.findings} == {"schema", "duplicate", "conflicting_answers"}
    assert all(finding.message and finding.fix for finding in report.findings)
