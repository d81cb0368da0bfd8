"""A row as the model will see it, and what of it is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plugins.data.checks.check_rows import chat
from tunery.plugins.data.preview import Preview, preview_line, read_place
from tunery.plugins.data.read.formats import BUILT_IN
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry.errors import InvalidData, InvalidInput, NotFound


def preview(base: Path, path: Path, number: int, *, limit: int = 999) -> list[Preview]:
    return preview_line(path, number, formats=BUILT_IN, renderer=Renderer(base), max_length=limit)


def test_trained_and_untrained_runs(tmp_path: Path, tiny_base_folder: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(chat("é?", "yes")) + "\n")
    (example,) = preview(tiny_base_folder, path, 2, limit=10)
    assert [(segment.text, segment.trained) for segment in example.segments] == [
        ("<|im_start|>user\né?<|im_end|>\n<|im_start|>assistant\n", False),
        ("yes<|im_end|>", True),
    ]
    assert sum(segment.tokens for segment in example.segments) == len(example.ids) == example.cut + 10


def test_a_preference_shows_both_answers(tmp_path: Path, tiny_base_folder: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "q", "chosen": "good", "rejected": "bad"}))
    trained = [[s.text for s in one.segments if s.trained] for one in preview(tiny_base_folder, path, 1)]
    assert trained == [["good<|im_end|>"], ["bad<|im_end|>"]]


def test_places_that_are_none(tmp_path: Path, tiny_base_folder: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": 3}\n\n' + json.dumps(chat("a", "b", weight=0)))
    assert read_place("a:b.jsonl:12") == (Path("a:b.jsonl"), 12)
    for text in ("rows.jsonl", "rows.jsonl:", "rows.jsonl:0", "rows.jsonl:-1", ":3", "rows.jsonl:²"):
        with pytest.raises(InvalidInput, match="FILE:LINE"):
            read_place(text)
    with pytest.raises(NotFound, match="no line 4"):
        preview(tiny_base_folder, path, 4)
    with pytest.raises(InvalidData, match=r"rows\.jsonl:1: \$\.messages"):
        preview(tiny_base_folder, path, 1)
    with pytest.raises(InvalidData, match="is blank"):
        preview(tiny_base_folder, path, 2)
    with pytest.raises(InvalidInput, match="weight above 0"):
        preview(tiny_base_folder, path, 3)
