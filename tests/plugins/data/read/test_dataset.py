"""Reading rows: every bad line is reported, with its number, its place, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunery.plugins.data import CHAT, PROMPT_COMPLETION
from tunery.plugins.data.read.dataset import read_rows
from tunery.registry.errors import InvalidData, InvalidInput, TuneryError

FORMATS = [CHAT, PROMPT_COMPLETION]
GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def test_both_formats_become_conversations(tmp_path: Path) -> None:
    chat, pairs = tmp_path / "chat.jsonl", tmp_path / "pairs.jsonl"
    chat.write_text("\n" + json.dumps(GOOD) + "\n\n" + json.dumps(GOOD))
    pairs.write_text(json.dumps({"prompt": "a", "completion": "b"}))
    assert [(row.line, row.format, row.messages) for row in read_rows(chat, formats=FORMATS)] == [
        (2, "chat", GOOD["messages"]),
        (4, "chat", GOOD["messages"]),
    ]
    assert read_rows(pairs, formats=FORMATS)[0].messages == GOOD["messages"]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'"text"',
        b"3",
        b"null",
        b"\xff\xfe",
        b'{"messages": []}',
        b'{"messages": 3}',
        b'{"messages": [{"role": "user", "content": "a"}]}',
        b'{"messages": [{"role": "wizard", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        b'{"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}',
        b'{"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "b"}]}',
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}',
        b'{"prompt": "a"}',
        b'{"prompt": "a", "completion": ""}',
        b'{"prompt": "a", "completion": 3}',
        b'{"something": "else"}',
        b'{"messages": [], "messages": []}',
        b'{"prompt": NaN, "completion": "x"}',
        b'{"prompt": "\\ud800", "completion": "x"}',
    ],
)
def test_every_bad_line_is_reported_and_good_ones_are_not(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(b"\n".join((good, line, good, line)))
    with pytest.raises(InvalidData) as caught:
        read_rows(path, formats=FORMATS)
    numbers = {problem.split(":")[1] for problem in caught.value.problems}
    assert numbers == {"2", "4"}, caught.value.problems


def test_the_number_of_bad_lines_is_right_whatever_the_file_is_called(tmp_path: Path) -> None:
    path = tmp_path / "day:3.jsonl"
    path.write_text('{"messages": [{"role": "x", "content": 1}]}\n[]\n' + json.dumps(GOOD))
    with pytest.raises(InvalidData, match="2 bad lines"):
        read_rows(path, formats=FORMATS)


def test_one_format_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({"prompt": "a", "completion": "b"}))
    with pytest.raises(InvalidData, match=r"rows\.jsonl:2"):
        read_rows(path, formats=FORMATS)


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "blank"])
def test_files_that_are_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_text("" if kind == "empty" else "\n \n")
    with pytest.raises(TuneryError):
        read_rows(path, formats=FORMATS)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(lines=st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_any_bytes_are_rows_or_a_clear_error(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(InvalidInput):
        read_rows(path, formats=FORMATS)
