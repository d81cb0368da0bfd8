"""What servers' processes write to stderr."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from tunery.plugins.runtime.log_format import JsonFormatter, TextFormatter, notice

HOSTILE = 'evil\r\n{"level": "info"}\u2028\x1b[31m\ud800'

PROGRAM = """
import logging, sys, threading, warnings
from tunery.plugins.runtime.log_format import log_event, notice, set_up_logging
set_up_logging(sys.argv[1], sys.argv[2])
logging.getLogger("tunery.engine").info("info")
logging.getLogger("tunery.engine").warning("warning %s", "a\\nb")
logging.getLogger("elsewhere").info("info elsewhere")
logging.getLogger("elsewhere").error("error elsewhere")
notice("ready: yes")
log_event("tunery.access", {"status": 200})
warnings.warn("a warning")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError("the end")
"""


def run(*arguments: str) -> list[str]:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    return ended.stderr.splitlines()


def test_every_line_of_a_process_is_an_event() -> None:
    events = [json.loads(line) for line in run("json", "info")]
    assert all(set(event) >= {"time", "level", "logger"} for event in events)
    shown = [(event["level"], event["logger"], event.get("message")) for event in events]
    assert shown[:5] == [
        ("info", "tunery.engine", "info"),
        ("warning", "tunery.engine", "warning a\nb"),
        ("error", "elsewhere", "error elsewhere"),
        ("info", "tunery", "ready: yes"),
        ("info", "tunery.access", None),
    ]
    assert (shown[5][:2], "a warning" in str(shown[5][2])) == (("warning", "py.warnings"), True)
    assert [event["exception"].splitlines()[-1] for event in events[6:]] == [
        "ZeroDivisionError: division by zero",
        "RuntimeError: the end",
    ]
    assert [shown[:2] for shown in shown[6:]] == [("critical", "tunery")] * 2


def test_the_level_is_the_least_severe_of_our_own() -> None:
    levels = [json.loads(line)["level"] for line in run("json", "error")]
    assert levels == ["error", "info", "info", "critical", "critical"]


def test_text_is_a_line_an_event_too() -> None:
    lines = run("text", "warning")
    assert lines[0] == r"WARNING tunery.engine: warning a\x0ab"
    assert lines[1:3] == ["ERROR elsewhere: error elsewhere", "ready: yes"]
    assert json.loads(lines[3])["status"] == 200


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_no_message_can_forge_a_line(formatter: TextFormatter | JsonFormatter) -> None:
    record = logging.LogRecord("tunery", logging.WARNING, "", 0, "%s", (HOSTILE,), None)
    line = formatter.format(record).encode("utf-8", "backslashreplace").decode()
    assert len(line.splitlines()) == 1
    assert not any(ord(character) < 32 for character in line)
    if isinstance(formatter, JsonFormatter):
        assert json.loads(line)["message"] == HOSTILE


def test_a_notice_is_text_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    notice("ready: yes")
    assert capsys.readouterr().err == "ready: yes\n"
