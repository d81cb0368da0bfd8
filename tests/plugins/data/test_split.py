"""Splitting: no row has its like on the other side, whatever the order; lines are copied as they are."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.plugins.data.checks.check_rows import LONG, PLUGINS, chat
from tunery.plugins.data.checks.runner import CheckOptions, check_data
from tunery.plugins.data.read.formats import BUILT_IN
from tunery.plugins.data.split import Split, SplitOptions, split_file
from tunery.registry.errors import Conflict, InvalidData, InvalidInput


def split(path: Path, *, fraction: float = 0.2, seed: int = 0, replace: bool = False) -> Split:
    sides = (path.with_suffix(".train.jsonl"), path.with_suffix(".val.jsonl"))
    return split_file(path, *sides, SplitOptions(fraction=fraction, seed=seed, replace=replace), formats=BUILT_IN)


def lines(number: int = 100) -> list[str]:
    """Four answers to each question, and near duplicates of one row among them."""
    rows = [chat(f"question {n // 4}", f"answer {n % 4}") for n in range(number)]
    return [
        json.dumps(row)
        for row in [*rows, *(chat(LONG.replace("second", word), "Off.") for word in ("third", "top", "last"))]
    ]


def test_rows_with_their_like_stay_on_one_side(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines()))
    for seed in range(8):
        done = split(path, seed=seed, replace=True)
        train, held_out = done.train.read_text().splitlines(), done.held_out.read_text().splitlines()
        assert sorted(train + held_out) == sorted(lines())
        assert (len(train), len(held_out)) == (done.train_rows, done.held_out_rows)
        assert 16 <= len(held_out) <= 21
        assert done.groups == 26
        report = check_data([done.train], CheckOptions(max_length=8), plugins=PLUGINS, validation=done.held_out)
        assert "leakage" not in {finding.rule for finding in report.findings}


def test_what_is_held_out_depends_on_the_seed_and_not_on_the_order(tmp_path: Path) -> None:
    path, shuffled = tmp_path / "rows.jsonl", tmp_path / "shuffled.jsonl"
    path.write_text("\n".join(lines()))
    mixed = lines()
    random.Random(5).shuffle(mixed)
    shuffled.write_text("\n".join(mixed))
    first, again, other = split(path), split(shuffled), set()
    assert set(first.held_out.read_text().splitlines()) == set(again.held_out.read_text().splitlines())
    for seed in range(1, 4):
        other.add(split(path, seed=seed, replace=True).held_out.read_text())
    assert len(other) == 3


def test_lines_are_copied_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{ "prompt":"a",  "completion":"b" }\r\n\n{"completion":"d","prompt":"c"}')
    done = split(path)
    copied = {done.train.read_bytes(), done.held_out.read_bytes()}
    assert copied == {b'{ "prompt":"a",  "completion":"b" }\r\n', b'{"completion":"d","prompt":"c"}\n'}


def test_what_cannot_be_split_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*lines(), "{"]))
    with pytest.raises(InvalidData, match=r"rows\.jsonl:104"):
        split(path)
    path.write_text(json.dumps(chat("a", "b")) + "\n" + json.dumps(chat("a", "c")))
    with pytest.raises(InvalidData, match="belong together"):
        split(path)
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(InvalidInput, match="between 0 and 1"):
            split(path, fraction=fraction)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_files_that_exist_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines()))
    done = split(path)
    before = done.train.read_bytes()
    with pytest.raises(Conflict, match="exists already"):
        split(path, seed=3)
    assert done.train.read_bytes() == before
    with pytest.raises(InvalidInput, match="three different files"):
        split_file(path, path, tmp_path / "x", SplitOptions(fraction=0.1, replace=True), formats=BUILT_IN)
    assert path.read_text() == "\n".join(lines())
