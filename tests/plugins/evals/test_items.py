"""Rows to evaluate: training rows, OpenAI's items, and what is asked for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunery.plugins.discovery import load_plugins
from tunery.plugins.evals.items import Item, Prompts, read_items
from tunery.plugins.evals.json_validity import JsonValidity
from tunery.plugins.evals.short_forms import grader_from_text
from tunery.registry.errors import InvalidData, InvalidInput, NotFound


def read(path: Path, *rows: Any, **options: Any) -> list[Item]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_items(path, formats=load_plugins(allow=()).formats(), **options)


def chat(*roles_and_texts: str) -> dict[str, Any]:
    pairs = zip(roles_and_texts[::2], roles_and_texts[1::2], strict=True)
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


def test_the_last_answer_of_a_training_row_is_the_reference(tmp_path: Path) -> None:
    row = chat("system", "s", "user", "a", "assistant", "b", "user", "c", "assistant", "d")
    more = {"prompt": "q", "completion": "r"}
    one, other = read(tmp_path / "a.jsonl", row, more)
    assert (one.fields["reference"], one.fields["input"], one.line) == ("d", "c", 1)
    assert [message["content"] for message in one.messages or ()] == ["s", "a", "b", "c"]
    assert (other.fields["reference"], other.fields["input"]) == ("r", "q")
    assert Prompts(None).messages(one) == one.messages


def test_items_are_asked_by_a_template_or_with_messages_of_their_own(tmp_path: Path) -> None:
    (item,) = read(tmp_path / "a.jsonl", {"item": {"q": "2+2?", "talk": [{"role": "user", "content": "hi"}]}})
    ask = {"type": "template", "template": [{"role": "user", "content": "Answer: {{item.q}}"}]}
    assert Prompts(ask).messages(item) == [{"role": "user", "content": "Answer: 2+2?"}]
    assert Prompts({"type": "item_reference", "item_reference": "item.talk"}).messages(item) == item.fields["talk"]
    for raw, message in (
        (None, "has no messages"),
        ({"type": "item_reference", "item_reference": "item.q"}, "not a list of messages"),
        ({"type": "item_reference", "item_reference": "item.none"}, "there is no item.none"),
    ):
        with pytest.raises(InvalidInput, match=message):
            Prompts(raw).messages(item)


@pytest.mark.parametrize(
    "raw",
    [{}, {"type": "template"}, {"type": "other"}, {"type": "template", "template": []},
     {"type": "template", "template": [{"role": "user", "content": "{{sample.output_text}}"}]}],
)  # fmt: skip
def test_input_messages_that_are_neither_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"data_source.input_messages"):
        Prompts(raw)


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    rows = [
        chat("user", "a"),
        {"item": 1},
        {"item": {}, "sample": {}},
        {"nothing": 1},
        chat("user", "a", "assistant", "b", "user", "c"),
        chat("assistant", "b"),
    ]
    with pytest.raises(InvalidData) as error:
        read(tmp_path / "a.jsonl", *rows)
    assert [problem.partition(": ")[0] for problem in error.value.problems] == [f"a.jsonl:{n}" for n in range(1, 7)]
    broken = tmp_path / "0123abcd"
    broken.write_bytes(b"[" * 5000)
    with pytest.raises(InvalidData, match=r"^rows\.json, line 1: row 1 is nested too deeply; flatten it$"):
        read_items(broken, formats=load_plugins(allow=()).formats(), name="rows.json")
    with pytest.raises(InvalidData, match="has no rows"):
        read(tmp_path / "a.jsonl")
    schema = JsonValidity({"required": ["q"]}, param="item_schema")
    with pytest.raises(InvalidData, match=r"a.jsonl:2: does not fit the item_schema: \$: 'q' is a required property"):
        read(tmp_path / "a.jsonl", {"item": {"q": 1}}, {"item": {}}, schema=schema)


def test_there_may_be_so_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery.plugins.evals.items.MAX_ROWS", 2)
    assert len(read(tmp_path / "a.jsonl", *[{"item": {}}] * 2)) == 2
    with pytest.raises(InvalidData, match="more than 2 rows"):
        read(tmp_path / "a.jsonl", *[{"item": {}}] * 3)


def test_graders_in_a_word(tmp_path: Path) -> None:
    (exact,) = grader_from_text("exact")
    assert (exact["operation"], exact["reference"]) == ("eq", "{{item.reference}}")
    (similar,) = grader_from_text("similarity:rouge_l>=0.6")
    assert (similar["evaluation_metric"], similar["pass_threshold"]) == ("rouge_l", 0.6)
    (tmp_path / "s.json").write_text('{"type": "object"}')
    (valid,) = grader_from_text(f"json-schema:{tmp_path / 's.json'}")
    assert valid == {"type": "json_schema", "name": "s", "schema": {"type": "object"}}
    (tmp_path / "g.json").write_text(json.dumps([exact, similar]))
    assert grader_from_text(str(tmp_path / "g.json")) == [exact, similar]
    with pytest.raises(NotFound, match="no file and no short form; those are exact"):
        grader_from_text("exakt")
    with pytest.raises(InvalidInput, match="similarity:METRIC>=NUMBER"):
        grader_from_text("similarity:rouge_l")
