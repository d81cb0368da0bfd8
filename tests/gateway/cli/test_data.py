"""`tunery data` as a process: what is wrong is told, as text, JSON or a page, with the exit code of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gateway.cli.test_adapters import tunery
from tests.plugins.data.test_checks import chat
from tunery.gateway.cli.data import visible
from tunery.plugins.testing import write_rows
from tunery.registry import Base
from tunery.registry.home import Home
from tunery.registry.registry import Registry


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    rows = [chat("a", "b"), chat("a", "c"), chat("mail \x1b[31mjo@example.org", "d")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"messages": [')
    return path


def test_good_rows_end_with_0_and_their_figures(
    home: Home, registry: Registry, tiny_base: Base, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    done = tunery(home, "data", "check", str(rows), "--base", "tiny")
    assert done.returncode == 0, done.stderr
    assert "rows.jsonl: 20 rows, chat" in done.stdout
    assert "trained tokens a row: min " in done.stdout
    assert done.stdout.endswith("0 errors, 0 warnings, 0 notes\n")


def test_bad_rows_end_with_2_in_every_form(home: Home, bad: Path, tmp_path: Path) -> None:
    text = tunery(home, "data", "check", str(bad))
    page = tunery(home, "data", "check", str(bad), "--html")
    as_json = tunery(home, "data", "check", str(bad), "--json")
    for done in (text, page, as_json):
        assert done.returncode == 2
        assert done.stderr == "error: 2 errors in the data; mend what is named and check again\n"
    assert "error\tbad.jsonl:2\t$\tconflicting_answers\t" in text.stdout
    assert "\x1b" not in text.stdout
    assert page.stdout.startswith("<!doctype html>")
    found = json.loads(as_json.stdout)
    assert found["errors"] == 2
    assert [(f["line"], f["rule"], f["severity"]) for f in found["findings"]] == [
        (2, "conflicting_answers", "error"),
        (3, "pii", "warning"),
        (4, "schema", "error"),
    ]
    assert found["statistics"]["files"][0]["rows"] == 3


def test_leaks_into_held_out_rows_are_told(home: Home, tmp_path: Path) -> None:
    rows, val = write_rows(tmp_path / "rows.jsonl", 20), write_rows(tmp_path / "val.jsonl", 4, start=18)
    done = tunery(home, "data", "check", str(rows), "--val", str(val), "--json")
    assert done.returncode == 2
    assert [(f["file"], f["line"], f["rule"]) for f in json.loads(done.stdout)["findings"]] == [
        ("val.jsonl", 1, "leakage"),
        ("val.jsonl", 2, "leakage"),
    ]


def test_a_row_is_shown_with_what_is_trained(home: Home, registry: Registry, tiny_base: Base, bad: Path) -> None:
    shown = tunery(home, "data", "preview", f"{bad}:3", "--base", "tiny")
    assert shown.returncode == 0, shown.stderr
    assert "mail \u241b[31mjo@example.org<|im_end|>" in shown.stdout
    assert shown.stdout.endswith("{+d<|im_end|>+}\n")
    assert "trained (between {+ and +})" in shown.stderr
    as_json = json.loads(tunery(home, "data", "preview", f"{bad}:1", "--base", "tiny", "--json").stdout)
    assert [segment["text"] for segment in as_json[0]["segments"] if segment["trained"]] == ["b<|im_end|>"]
    assert tunery(home, "data", "preview", f"{bad}:9", "--base", "tiny").returncode == 3
    assert tunery(home, "data", "preview", f"{bad}:4", "--base", "tiny").returncode == 2


def test_a_file_is_split_once(home: Home, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    done = tunery(home, "data", "split", str(rows), "--fraction", "0.25", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["train_rows"], found["held_out_rows"], found["groups"]) == (15, 5, 20)
    assert len(Path(found["held_out"]).read_text().splitlines()) == 5
    again = tunery(home, "data", "split", str(rows))
    assert again.returncode == 4
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["check", "/no/such.jsonl"], 3, "no file /no/such.jsonl"),
        (["check", "{rows}", "--format", "alpacca"], 2, "did you mean 'alpaca'"),
        (["check", "{rows}", "--json", "--html"], 2, "exclude each other"),
        (["preview", "{rows}", "--base", "tiny"], 2, "FILE:LINE"),
        (["split", "{rows}", "--fraction", "2"], 2, "between 0 and 1"),
    ],
)
def test_mistakes(
    home: Home, registry: Registry, tiny_base: Base, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    done = tunery(home, "data", *(word.replace("{rows}", str(rows)) for word in arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert says in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_text_cannot_steer_a_terminal() -> None:
    assert visible("a\x1b]0;x\x07\n\x9bb\u202ec\td") == "a\u241b]0;x\u2407\n\ufffdb\ufffdc\u2409d"
