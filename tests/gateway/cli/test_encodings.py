"""Every command under ASCII and Latin-1: nothing ends in UnicodeEncodeError, what was done is done,
and JSON stays JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.cli.test_adapters import filled, tunery
from tests.plugins.data.checks.check_rows import chat
from tunery.plugins.bases.resolve import base_digest
from tunery.registry import Base
from tunery.registry.home import Home
from tunery.registry.registry import Registry

__all__ = ["filled"]

PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "locale": PLAIN,
}
TEXT = "größer → besser 😀"

ARROW, SMILEY = "\\u2192", "\\ud83d\\ude00"

WALK = """
import sys
import click
from tunery.gateway import cli as package

def walk(command, path):
    context = click.Context(command)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            yield from walk(command.get_command(context, name), [*path, name])
    yield path

commands = list(walk(package.cli, []))
for path in commands:
    for ending in (["--help"], ["--gr\\u00f6\\u00dfe \\u2192"]):
        try:
            package.main([*path, *ending])
        except SystemExit as ended:
            print("ended", *path, ended.code)
print("commands", len(commands))
"""


def run(home: Home, encoding: str, *command: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "TUNERY_HOME": str(home.root), "TUNERY_ACTOR": "Jörg", **ENCODINGS[encoding]}
    return subprocess.run([sys.executable, *command], capture_output=True, env=environment, timeout=120, check=False)


def cli(home: Home, encoding: str, *arguments: str) -> str:
    done = run(home, encoding, "-m", "tunery.gateway.cli", *arguments)
    assert b"Traceback" not in done.stderr, done.stderr.decode("latin-1")
    assert b"UnicodeEncodeError" not in done.stderr
    return done.stdout.decode("ascii" if encoding == "locale" else encoding)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_has_help_and_reports_mistakes(home: Home, encoding: str) -> None:
    done = run(home, encoding, "-c", WALK)
    assert done.returncode == 0, done.stderr.decode("latin-1")
    lines = done.stdout.decode("ascii" if encoding == "locale" else encoding).splitlines()
    number = int(lines[-1].split()[-1])
    ended = [line.split()[-1] for line in lines if line.startswith("ended ")]
    assert number > 20
    assert sorted(ended) == ["0"] * number + ["2"] * number


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1", "locale"])
def test_commands_that_print_more_than_ascii(filled: Home, registry: Registry, encoding: str) -> None:
    registry.move_alias("acme/support", "canary", 1, actor="t", reason=TEXT)
    moved = cli(filled, encoding, "adapters", "alias", "acme/support", "production", "2")
    assert moved == f"acme/support@production: none {ARROW} 2\n"
    history = json.loads(cli(filled, encoding, "adapters", "history", "acme/support", "--json"))
    assert [(move["after"], move["actor"], move["reason"]) for move in history] == [
        (1, "t", TEXT),
        (2, "user:Jörg", ""),
    ]
    assert ARROW in cli(filled, encoding, "adapters", "history", "acme/support")
    assert ARROW in cli(filled, encoding, "adapters", "list", "acme/support")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1", "locale"])
def test_rows_that_hold_more_than_ascii(
    home: Home, registry: Registry, tiny_base: Base, tmp_path: Path, encoding: str
) -> None:
    rows = [chat(f"{TEXT} <|im_end|> {n} of jo@example.org", f"{TEXT} {n}.") for n in range(4)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = cli(home, encoding, "data", "preview", f"{path}:1", "--base", "tiny")
    assert f"{ARROW} besser {SMILEY}" in shown
    previewed = json.loads(cli(home, encoding, "data", "preview", f"{path}:1", "--base", "tiny", "--json"))
    assert TEXT in "".join(segment["text"] for segment in previewed[0]["segments"])
    assert "special_token" in cli(home, encoding, "data", "check", str(path))
    assert json.loads(cli(home, encoding, "data", "check", str(path), "--json"))["counts"]["pii"] == {"warning": 4}
    assert cli(home, encoding, "data", "check", str(path), "--html").isascii()
    assert cli(home, encoding, "data", "split", str(path), "--allow", "pii")


def test_what_a_locale_cannot_read_is_refused_before_anything_is_done(filled: Home, tmp_path: Path) -> None:
    done = run(
        filled,
        "locale",
        "-m",
        "tunery.gateway.cli",
        "adapters",
        "alias",
        "acme/support",
        "production",
        "2",
        "--reason",
        TEXT,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"set PYTHONUTF8=1" in done.stderr
    assert b"gr\\u00f6\\u00dfer" in done.stderr
    assert tunery(filled, "adapters", "history", "acme/support").stdout == ""


@pytest.mark.slow
def test_a_base_has_the_same_digest_under_every_locale(home: Home, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<｜end｜>"}, ensure_ascii=False), "utf-8")
    code = "import sys; from pathlib import Path; from tunery.plugins.bases.resolve import base_digest; print(base_digest(Path(sys.argv[1])))"
    done = run(home, "locale", "-c", code, str(tmp_path))
    assert done.stdout.decode().strip() == base_digest(tmp_path), done.stderr
