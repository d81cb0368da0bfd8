"""The rule `extra_column`."""

from __future__ import annotations

from pathlib import Path

from tests.plugins.data.checks.check_rows import chat, check, places_of


def test_columns_that_are_not_read_are_reported_once_a_file(tmp_path: Path) -> None:
    rows = [
        chat(str(n), f"{n}.") | {"metadata": {"card": "4111 1111 1111 1111"}, "id": n, "score": n, "empty": None}
        for n in range(3)
    ]
    report = check(tmp_path, *rows, chat("x", "y.") | {"rating": 3})
    assert places_of(report, "extra_column") == [
        ("rows.jsonl", 1, "$.score", "warning"),
        ("rows.jsonl", 4, "$.rating", "warning"),
    ]
    assert report.errors == []
