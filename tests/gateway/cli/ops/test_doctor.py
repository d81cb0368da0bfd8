"""`tunery doctor`, as a command."""

from __future__ import annotations

import json

import pytest

from tests.gateway.cli.ops.test_backup import run
from tunery.registry.home import Home
from tunery.registry.registry import Registry


def test_a_line_for_each_check_and_1_for_a_failure(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNERY_HOME", str(registry.home.root))
    monkeypatch.setenv("TUNERY_SERVE_PORT", "0")
    registry.home.root.chmod(0o700)
    assert run("doctor") == 0
    assert "ok    database:" in capsys.readouterr().out
    registry.close()
    registry.home.database.write_bytes(b"\x1b[2J" * 100)
    assert run("doctor", "--json") == 1
    findings = json.loads(capsys.readouterr().out)
    (database,) = [finding for finding in findings if finding["check"] == "database"]
    assert (database["state"], "restore" in database["advice"]) == ("fail", True)


def test_a_server_that_does_not_answer(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNERY_HOME", str(home.root))
    assert run("doctor", "--server", "http://127.0.0.1:9") == 1
    assert "does not answer" in capsys.readouterr().out
