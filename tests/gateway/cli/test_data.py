"""`tunery data` as a process: what is wrong is reported, as text, JSON or a page, with the exit code of bad input."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from tests.gateway.cli.test_adapters import tunery
from tests.plugins.data.checks.check_rows import chat
from tunery.gateway.cli.terminal.text import visible
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
        assert done.stderr == "error: 2 errors in the data; fix what is named and check again\n"
    assert "error\tbad.jsonl:2\t$\tconflicting_answers\t" in text.stdout
    assert "\x1b" not in text.stdout
    assert page.stdout.startswith("<!doctype html>")
    report = json.loads(as_json.stdout)
    assert report["errors"] == 2
    assert [(f["line"], f["rule"], f["severity"]) for f in report["findings"]] == [
        (2, "conflicting_answers", "error"),
        (3, "pii", "warning"),
        (4, "schema", "error"),
    ]
    assert report["statistics"]["files"][0]["rows"] == 3


def test_leaks_into_held_out_rows_are_reported(home: Home, tmp_path: Path) -> None:
    rows, val = write_rows(tmp_path / "rows.jsonl", 20), write_rows(tmp_path / "val.jsonl", 4, start=18)
    done = tunery(home, "data", "check", str(rows), "--val", str(val), "--json")
    assert done.returncode == 2
    assert [(f["file"], f["line"], f["rule"]) for f in json.loads(done.stdout)["findings"]] == [
        ("val.jsonl", 1, "leakage"),
        ("val.jsonl", 2, "leakage"),
    ]


@pytest.mark.slow
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
    report = json.loads(done.stdout)
    assert (report["train_rows"], report["held_out_rows"], report["groups"]) == (15, 5, 20)
    assert len(Path(report["held_out"]).read_text().splitlines()) == 5
    again = tunery(home, "data", "split", str(rows))
    assert again.returncode == 4
    assert "exists already" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["check", "/no/such.jsonl"], 3, "no file /no/such.jsonl"),
        (["check", "{rows}", "--format", "alpacca"], 2, "did you mean 'alpaca'"),
        (["check", "{rows}", "--json", "--html"], 2, "exclude each other"),
        (["preview", "{rows}", "--base", "tiny"], 2, "FILE:LINE"),
        (["split", "{rows}", "--fraction", "2"], 2, "between 0 and 1"),
    ],
)
def test_mistakes(
    home: Home, registry: Registry, tiny_base: Base, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    done = tunery(home, "data", *(word.replace("{rows}", str(rows)) for word in arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_a_thousand_faults_are_a_page(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text("question,answer\n" + "".join(f"{n}?,{n}.\n" for n in range(3000)))
    done = tunery(home, "data", "check", str(path))
    assert done.returncode == 2
    assert done.stdout.count("fit no format") == 3
    assert "schema: 2997 more (error)" in done.stdout
    assert "3000 errors in the data" in done.stderr
    assert len(done.stdout.splitlines()) < 12


@pytest.mark.slow
def test_any_kind_of_file_is_checked_shown_and_split(
    home: Home, registry: Registry, tiny_base: Base, tmp_path: Path
) -> None:
    rows = [chat(f"item {n} é", f"It is {n}.") for n in range(20)]
    path = tmp_path / "rows.json.gz"
    path.write_bytes(gzip.compress(json.dumps(rows, indent=2).encode("utf-16")))
    assert "rows.json.gz: 20 rows, chat" in tunery(home, "data", "check", str(path)).stdout
    assert "item 6 é" in tunery(home, "data", "preview", f"{path}:7", "--base", "tiny").stdout
    done = tunery(home, "data", "split", str(path))
    assert done.returncode == 0, done.stderr
    halves = [(tmp_path / f"rows.{half}.jsonl").read_text().splitlines() for half in ("train", "val")]
    assert sorted((json.loads(line) for half in halves for line in half), key=str) == sorted(rows, key=str)


@pytest.mark.slow
def test_what_check_refuses_is_not_split(home: Home, tmp_path: Path) -> None:
    mixed, twice = tmp_path / "mixed.jsonl", tmp_path / "twice.jsonl"
    rows = [chat(str(n), f"{n}.") for n in range(5)]
    mixed.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "a", "completion": "b"}]))
    twice.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    for path, rule in ((mixed, "schema"), (twice, "duplicate")):
        assert tunery(home, "data", "check", str(path)).returncode == 2
        done = tunery(home, "data", "split", str(path))
        assert (done.returncode, done.stdout) == (2, "")
        assert f"[{rule}]" in done.stderr
        assert "nothing was written" in done.stderr
    assert sorted(each.name for each in tmp_path.glob("*.jsonl")) == ["mixed.jsonl", "twice.jsonl"]
    assert "cannot be allowed" in tunery(home, "data", "split", str(mixed), "--allow", "schema").stderr
    assert tunery(home, "data", "split", str(twice), "--allow", "duplicate").returncode == 0


@pytest.mark.slow
def test_a_pipe_is_refused_and_not_waited_for(home: Home, tmp_path: Path) -> None:
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    for command in (["check", str(pipe)], ["split", str(pipe)], ["check", "/dev/zero"], ["check", "-"]):
        done = tunery(home, "data", *command)
        assert (done.returncode, done.stdout) == (2, "")
        assert "write it to a file first" in done.stderr


def test_text_cannot_steer_a_terminal() -> None:
    assert visible("a\x1b]0;x\x07\n\x9bb\u202ec\td") == "a\u241b]0;x\u2407\n\ufffdb\ufffdc\u2409d"
