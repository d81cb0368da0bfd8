"""The rule `pii`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.data.checks.check_rows import chat, check, places_of
from tunery.plugins.data.checks.rules.personal_data import is_card, is_iban


@pytest.mark.parametrize(
    ("text", "severity"),
    [
        ("Mail jane.doe+x@mail.example.org please", "warning"),
        ("Call +49 30 1234567 now", "warning"),
        ("Call (555) 123-4567 now", "warning"),
        ("Pay with 4111 1111 1111 1111", "error"),
        ("Pay with 378282246310005.", "error"),
        ("To DE89 3704 0044 0532 0130 00", "error"),
        ("To GB82WEST12345698765432", "error"),
        ("My number is 219-09-9999.", "error"),
    ],
)
def test_personal_data(tmp_path: Path, text: str, severity: str) -> None:
    assert places_of(check(tmp_path, chat("a", text)), "pii") == [("rows.jsonl", 1, "$.messages[1].content", severity)]


@pytest.mark.parametrize(
    "text",
    [
        "Pay with 4111 1111 1111 1112",
        "To DE89 3704 0044 0532 0130 01",
        "On 2024-01-15 at 12:30:45, 1,234,567.89 of 100-200",
        "version 10.2.3.4, order 1234567890, @here, a@b",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "https://example.org/a:b and sk-short and task-force-of-many-words",
        "0000 0000 0000 0000",
        "Your password is wrong: a password is 8-20characters, min_password=12345, password: ********, password=os.environ['P4SS']",
        "See list [1], an array a[NAME_1], {{}} and <b>your</b>, x < your y > z, [INFO] started, [x]",
        "parts 666-12-3456, 900-12-3456, 123-00-4567, 123-45-0000, 1123-45-6789 and 123-45-67890",
    ],
)
def test_what_only_looks_like_it_is_left_alone(tmp_path: Path, text: str) -> None:
    assert check(tmp_path, chat("a", text)).findings == []


def test_checksums() -> None:
    assert is_card("5555555555554444")
    assert not is_card("5555555555554445")
    assert not is_card("٤١١١١١١١١١١١١١١١")
    assert is_iban("FR1420041010050500013M02606")
    assert not is_iban("FR1420041010050500013M02607")
