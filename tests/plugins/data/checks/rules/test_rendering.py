"""The rules that need a base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.plugins.data.checks.check_rows import LONG, chat, check, places_of


def with_files(base: Path, folder: Path, **changed: Any) -> Path:
    """The base with other values in its tokenizer's settings."""
    shutil.copytree(base, folder)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | changed))
    return folder


def test_no_trainable_token(tmp_path: Path, tiny_base_folder: Path) -> None:
    rows = (chat("a", "b", weight=0), chat(LONG, "b"), chat("a", "c", weight=1))
    report = check(tmp_path, *rows, base=tiny_base_folder, limit=64)
    assert [at[1] for at in places_of(report, "no_trainable_token")] == [1, 2]
    assert [at[1] for at in places_of(check(tmp_path, *rows), "no_trainable_token")] == [
        1
    ]  # without a base, from weights


def test_end_of_turn_not_trained(tmp_path: Path, tiny_base_folder: Path) -> None:
    unending = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    base = with_files(tiny_base_folder, tmp_path / "base", chat_template=unending, eos_token=None)
    assert places_of(check(tmp_path, chat("a", "b"), base=base), "end_of_turn_not_trained") == [
        ("rows.jsonl", 1, "$", "error")
    ]
    assert places_of(check(tmp_path, chat("a", "b"), base=tiny_base_folder), "end_of_turn_not_trained") == []


def test_an_earlier_answer_without_an_end_is_a_warning(tmp_path: Path, tiny_base_folder: Path) -> None:
    unended = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    base = with_files(tiny_base_folder, tmp_path / "base", chat_template=unended)
    row = {"messages": [*chat("a", "b")["messages"], *chat("c", "d")["messages"]]}
    assert places_of(check(tmp_path, row, base=base), "end_of_turn_not_trained") == [("rows.jsonl", 1, "$", "warning")]


def test_a_row_that_the_template_refuses(tmp_path: Path, tiny_base_folder: Path) -> None:
    base = with_files(tiny_base_folder, tmp_path / "base", chat_template="{{ raise_exception('never') }}")
    (finding,) = check(tmp_path, chat("a", "b"), base=base).findings
    assert (finding.rule, finding.severity) == ("template", "error")
    assert "never" in finding.message


def test_truncation_names_the_row_and_what_it_loses(tmp_path: Path, tiny_base_folder: Path) -> None:
    report = check(tmp_path, chat("a", "b"), chat("a?", LONG), base=tiny_base_folder, limit=64)
    assert places_of(report, "truncation") == [("rows.jsonl", 2, "$", "warning")]
    tokens = report.statistics["tokens"]
    (finding,) = [finding for finding in report.findings if finding.rule == "truncation"]
    assert f"has {tokens['total']['max']} tokens" in finding.message
    assert f"the last {tokens['lost']} are cut off ({tokens['lost']} of them trained)" in finding.message
    assert tokens["over_max_length"] == 1
    assert tokens["lost"] == tokens["total"]["max"] - 64


def test_token_lengths_are_those_of_the_renderer(tmp_path: Path, tiny_base_folder: Path) -> None:
    from tunery.plugins.data.render.renderer import Renderer

    rows = [chat("q" * number, "a" * number) for number in range(1, 101)]
    examples = [Renderer(tiny_base_folder).example(row["messages"]) for row in rows]
    lengths, trained = [len(e.ids) for e in examples], sorted(sum(e.trained) for e in examples)
    tokens = check(tmp_path, *rows, base=tiny_base_folder).statistics["tokens"]
    ordered = sorted(lengths)
    assert tokens["total"] == {
        "min": ordered[0],
        "p50": ordered[49],
        "p95": ordered[94],
        "max": ordered[-1],
        "sum": sum(lengths),
    }
    assert (tokens["trained"]["min"], tokens["trained"]["sum"]) == (trained[0], sum(trained))
