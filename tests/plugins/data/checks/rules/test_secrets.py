"""The rule `secret`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.data.checks.check_rows import chat, check, places_of

SECRETS = [
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "ghp_" + "a1B2" * 9,
    "glpat-" + "a1B2c3D4e5F6g7H8i9J0",
    "xoxb-" + "123456789012-abcdef",
    "AIza" + "a1B2c" * 7,
    "hf_" + "aB" * 17,
    "sk_live_" + "a1B2" * 5,
    "sk-proj-" + "a1B2" * 6,
    "postgres://admin:" + "hunter2@db.example.org",
    "password: " + "hunter2",
    "DB_PASSWORD=" + "Tr0ub4dor&3",
    '"passwd": "' + 's3cr3t-pass"',
    "api_key = '" + "a1B2c3D4e5F6g7H8i9J0k'",
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTYifQ." + "c2lnbmF0dXJlLW9mLXRoaXM",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_errors_and_are_not_repeated(tmp_path: Path, secret: str) -> None:
    report = check(tmp_path, chat(f"Use {secret} here", "b"))
    assert places_of(report, "secret") == [("rows.jsonl", 1, "$.messages[0].content", "error")]
    assert not any(secret in str(finding) for finding in report.findings)


def test_a_password_in_prose_is_a_warning(tmp_path: Path) -> None:
    report = check(tmp_path, chat("a", "Your temporary password is " + "Welcome2024."))
    assert places_of(report, "secret") == [("rows.jsonl", 1, "$.messages[1].content", "warning")]
    assert "Welcome2024" not in str(report.findings)
