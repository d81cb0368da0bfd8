"""The rules `placeholder`, `cut_answer` and `repeated_prompt`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.data.checks.check_rows import chat, check, places_of

SENTENCE = "You can change the address in the settings. "


@pytest.mark.parametrize(
    "text", ["Dear {{name}}, hello", "I am [NAME].", "at [COMPANY NAME]", "at <your company>", "[insert date]"]
)
def test_templates_that_were_not_filled_in(tmp_path: Path, text: str) -> None:
    assert places_of(check(tmp_path, chat("a", text)), "placeholder") == [
        ("rows.jsonl", 1, "$.messages[1].content", "warning")
    ]


@pytest.mark.parametrize(
    ("answer", "cut"),
    [
        (SENTENCE + "Then confirm the mail that we", True),
        (SENTENCE + "Then open your", True),
        ("First you open the settings of your account and", True),
        ("```python\nprint(1)\n", True),
        (SENTENCE, False),
        (SENTENCE + "Ask us at https://example.org/help", False),
        (SENTENCE + "\n\n- open the settings\n- change the address there and here", False),
        (SENTENCE + "\n\nBest regards,\nThe Team", False),
        ("```python\nprint(1)\n```", False),
        ("the printer on the second floor has no paper today", False),
        ("你可以在设置中更改地址", False),
    ],
)
def test_answers_that_are_cut_off(tmp_path: Path, answer: str, cut: bool) -> None:
    assert places_of(check(tmp_path, chat("a", answer)), "cut_answer") == [("rows.jsonl", 1, "$", "warning")] * cut


def test_answers_that_begin_with_the_prompt(tmp_path: Path) -> None:
    asked = "Where is the printer?"
    pair = {"prompt": asked, "completion": asked + " Upstairs."}
    assert places_of(check(tmp_path, pair), "repeated_prompt") == [("rows.jsonl", 1, "$", "error")]
    assert places_of(check(tmp_path, {"prompt": "Hello", "completion": "Hello there"}), "repeated_prompt") == []
    both = {"prompt": asked, "chosen": asked + " Up.", "rejected": asked + " Down."}
    assert places_of(check(tmp_path, both), "repeated_prompt") == [("rows.jsonl", 1, "$", "error")]
    for one in (both | {"chosen": "Up."}, chat(asked, asked + " Up.")):
        assert places_of(check(tmp_path, one), "repeated_prompt") == [("rows.jsonl", 1, "$", "warning")]
