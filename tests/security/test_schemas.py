"""JSON schemas of evaluations: what they cost is bounded, whatever is in them. See also
tests/gateway/engine/structured_output for those of structured output, and tests/plugins/evals for references."""

from __future__ import annotations

from typing import Any

import pytest

from tunery.plugins.evals import json_validity
from tunery.plugins.evals.graders import read_graders
from tunery.plugins.evals.json_validity import JsonValidity
from tunery.registry.errors import InvalidInput

BOMBS = (
    "a{100000000}",
    "(?:(?:(?:a{100}){100}){100}){100}",
    "(?:[ab]{1000}){1000000}",
    "(?:a?){100000000}",
    "(?:" + r"\p{L}{900}" * 500 + ")",
    r"(a)\1",
    "^(?=a)",
    "\ud800",
)
"""Patterns that would take gigabytes to compile, or forever to match, and those that RE2 leaves out for that reason."""


@pytest.mark.parametrize("pattern", BOMBS, ids=range(len(BOMBS)))
def test_a_pattern_that_cannot_be_bounded_is_refused(pattern: str) -> None:
    for schema in ({"pattern": pattern}, {"properties": {"a": {"pattern": pattern}}}):
        with pytest.raises(InvalidInput, match="is not a JSON schema") as caught:
            JsonValidity(schema, param="item_schema")
        assert len(caught.value.message) < 500


@pytest.mark.parametrize("pattern", ["^(a|aa)+$", "^(a*)*$", "^(a+)+$", "(a|a)*" * 100 + "$", "(x+x+)+y"])
def test_a_pattern_takes_no_longer_for_a_text_that_it_does_not_match(pattern: str) -> None:
    schema = JsonValidity({"type": "string", "pattern": pattern}, param="schema")
    schema.problem("a" * 30_000 + "!")
    with pytest.raises(InvalidInput, match="too long for a pattern"):
        schema.problem("a" * 100_000)


def test_patterns_mean_what_they_meant() -> None:
    for pattern, fits, other in (
        (r"^\d{4}-\d{2}$", "2024-05", "x"),
        (r"^\p{L}+$", "Äpfel", "1"),
        ("b", "abc", "ac"),
        ("^ü\\d?$", "ü1", "u1"),
        ("", "", None),
    ):
        schema = JsonValidity({"pattern": pattern}, param="schema")
        assert schema.problem(fits) is None
        if other is not None:
            assert "does not match" in (schema.problem(other) or "")
    assert JsonValidity({"pattern": "x"}, param="schema").problem("\ud800") is not None


@pytest.mark.parametrize(
    ("items", "unique"),
    [
        ([], True), ([1, 1.0], False), ([1, True], True), ([0, False], True), ([{"a": 1, "b": 2}, {"b": 2, "a": 1.0}], False),
        ([[1], ["1"]], True), (["1", 1], True), ([None, None], False), ([{"a": [1]}, {"a": [2]}], True), ([1.5, 1.5], False),
        ([{"n": n} for n in range(50_000)], True),
    ],
)  # fmt: skip
def test_unique_items_are_found_at_once(items: list[Any], unique: bool) -> None:
    schema = JsonValidity({"uniqueItems": True}, param="schema")
    assert (schema.problem(items) is None) == unique
    assert JsonValidity({"uniqueItems": False}, param="schema").problem(items) is None


def test_values_have_a_time_alone_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"allOf": [{"items": {"pattern": "^x"}}] * 50}
    monkeypatch.setattr(json_validity, "MAX_SECONDS", 0.0)
    with pytest.raises(InvalidInput, match="0 s for one value"):
        JsonValidity(wide, param="schema").problem(["x"] * 1000)
    monkeypatch.setattr(json_validity, "MAX_SECONDS", 60.0)
    monkeypatch.setattr(json_validity, "MAX_TOTAL_SECONDS", 0.05)
    schema = JsonValidity(wide, param="schema")

    def check_all() -> None:
        for _ in range(1_000_000):
            schema.problem(["x"] * 20)

    with pytest.raises(InvalidInput, match=r"or 0\.05 s for all"):
        check_all()


def test_graders_have_a_size_together() -> None:
    schema = {"properties": {f"p{n}": {"type": "string"} for n in range(1500)}}
    graders = [{"type": "json_schema", "name": f"g{n}", "schema": schema} for n in range(4)]
    with pytest.raises(InvalidInput, match="bytes of JSON; the limit is"):
        read_graders(graders)
    assert len(read_graders(graders[:1])) == 1
