"""The rule `encoding`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.data.checks.check_rows import check, places_of


@pytest.mark.parametrize(
    ("raw", "path", "severity"),
    [
        (b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\n', "$", "warning"),
        (b'{"prompt": "\xff", "completion": "b"}\n', "$", "error"),
        (b'{"prompt": "\\ud800", "completion": "b"}\n', "$", "error"),
        (b'{"prompt": "a\\u0000", "completion": "b"}\n', "$.prompt", "warning"),
        (b'{"prompt": "a", "completion": "b\xef\xbf\xbd"}\n', "$.completion", "warning"),
        ('{"prompt": "cafÃ© olÃ©", "completion": "b"}\n'.encode(), "$.prompt", "warning"),
    ],
)
def test_encoding(tmp_path: Path, raw: bytes, path: str, severity: str) -> None:
    assert places_of(check(tmp_path, raw), "encoding") == [("rows.jsonl", 1, path, severity)]


def test_encoding_of_nul_bytes_and_of_mixed_line_ends(tmp_path: Path) -> None:
    row = b'{"prompt": "%d", "completion": "b"}'
    report = check(tmp_path, row % 1 + b"\n", row % 2 + b"\r\n", row % 3 + b"\n", row % 4 + b"\r\n")
    assert places_of(report, "encoding") == [("rows.jsonl", 2, "$", "warning")]
    assert places_of(check(tmp_path, row % 1 + b"\0\n"), "encoding") == [("rows.jsonl", 1, "$", "error")]
    assert (
        places_of(check(tmp_path, '{"prompt": "Größe, naïve, 世界 👩‍👩‍👧", "completion": "é"}\n'.encode()), "encoding")
        == []
    )
