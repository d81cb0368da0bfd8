"""Graders: what each says of an answer, and what is refused before any answer."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.plugins.evals.graders import CompiledGrader, read_graders
from tunery.plugins.evals.similarity import METRICS
from tunery.registry.errors import InvalidInput

ANSWER, REFERENCE = "{{sample.output_text}}", "{{item.reference}}"
LABELS = {
    "type": "label_model",
    "name": "tone",
    "model": "tiny",
    "input": [{"role": "user", "content": [{"type": "input_text", "text": f"Is this polite? {ANSWER}"}]}],
    "labels": ["polite", "rude", "neutral"],
    "passing_labels": ["polite", "neutral"],
}
SCORES = LABELS | {"type": "score_model", "range": [1, 5], "pass_threshold": 4}
for _key in ("labels", "passing_labels"):
    del SCORES[_key]


def check(operation: str) -> dict[str, Any]:
    return {"type": "string_check", "name": "c", "input": ANSWER, "reference": REFERENCE, "operation": operation}


def one(raw: dict[str, Any]) -> CompiledGrader:
    (grader,) = read_graders([raw])
    return grader


def context(text: str, reference: str = "Paris") -> dict[str, Any]:
    sample: dict[str, Any] = {"output_text": text}
    with contextlib.suppress(ValueError, RecursionError):
        sample["output_json"] = json.loads(text)
    return {"item": {"reference": reference}, "sample": sample}


@pytest.mark.parametrize(
    ("operation", "text", "passed"),
    [
        ("eq", "Paris", True), ("eq", "paris", False), ("eq", "Paris ", False), ("ne", "Rome", True),
        ("ne", "Paris", False), ("like", "It is Paris.", True), ("like", "It is paris.", False),
        ("ilike", "It is paris.", True), ("ilike", "Rome", False),
    ],
)  # fmt: skip
def test_string_checks(operation: str, text: str, passed: bool) -> None:
    score = one(check(operation)).grade(context(text))
    assert (score.score, score.passed, score.type, score.error) == (float(passed), passed, "string_check", None)


@given(st.sampled_from(["eq", "ne", "like", "ilike"]), st.text(), st.text())
def test_a_check_is_all_or_nothing_and_equal_texts_pass_all_but_ne(operation: str, text: str, reference: str) -> None:
    grader = one(check(operation))
    assert grader.grade(context(text, reference)).score in (0.0, 1.0)
    assert grader.grade(context(text, text)).passed == (operation != "ne")


@given(st.sampled_from(sorted(METRICS)), st.text(), st.text(), st.floats(0, 1))
def test_similarity_passes_from_its_threshold_on(metric: str, text: str, reference: str, threshold: float) -> None:
    raw = check("eq") | {"type": "text_similarity", "evaluation_metric": metric, "pass_threshold": threshold}
    del raw["operation"]
    score = one(raw).grade(context(text, reference))
    assert score.score is not None
    assert 0 <= score.score <= 1
    assert score.passed == (score.score >= threshold)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ('{"n": 1}', None),
        ('{"n": "1"}', "$.n: '1' is not of type 'integer'"),
        ("{}", "$: 'n' is a required property"),
        ('{"n": 1', "it is not JSON"),
        ('{"n": NaN}', "it is not JSON: NaN is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ('{"n": ' + "1" * 5000 + "}", "it is not JSON: it holds a number of 5000 digits"),
    ],
)
def test_json_is_checked_against_its_schema(text: str, note: str | None) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    score = one({"type": "json_schema", "name": "valid", "schema": schema}).grade(context(text))
    assert (score.score, score.passed) == ((1.0, True) if note is None else (0.0, False))
    assert (score.note or "").startswith(note or "")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "https://example.com/schema.json"}, "not within it"),
        ({"$ref": "#"}, "refers to itself"),
        ({"$ref": "#/$defs/l0", "$defs": {f"l{n}": {"allOf": [{"$ref": f"#/$defs/l{n + 1}"}] * 4} for n in range(12)} | {"l12": {}}}, "references"),
    ],
)  # fmt: skip
def test_a_schema_that_reaches_out_or_never_ends_is_an_error_of_the_row(schema: dict[str, Any], message: str) -> None:
    score = one({"type": "json_schema", "name": "valid", "schema": schema}).grade(context('"' + "a" * 40 + '!"'))
    assert score.score is None
    assert message in (score.error or "")


def test_a_field_of_an_answer_that_is_not_json_scores_nothing() -> None:
    score = one(check("eq") | {"input": "{{sample.output_json.city}}"}).grade(context("Paris"))
    assert (score.score, score.passed, score.error, score.note) == (0.0, False, None, "the answer is not valid JSON")
    assert one(check("eq") | {"input": "{{sample.output_json.city}}"}).grade(context('{"city": "Paris"}')).passed


def test_a_judge_is_asked_for_one_of_the_labels() -> None:
    grader = one(LABELS)
    judge = grader.judge(context("Hi"))
    assert judge is not None
    assert judge.messages == [{"role": "user", "content": "Is this polite? Hi"}]
    schema = judge.response_format["json_schema"]["schema"]
    assert schema["properties"] == {"label": {"type": "string", "enum": LABELS["labels"]}}
    assert grader.read_verdict('{"label": "neutral"}').passed
    rude = grader.read_verdict('{"label": "rude"}')
    assert (rude.score, rude.passed, rude.sample) == (0.0, False, {"output_text": '{"label": "rude"}', "label": "rude"})


@pytest.mark.parametrize(
    "text",
    ["", "polite", '{"label": "kind"}', '{"label": ["polite"]}', '{"label": "polite", "x": 1}', "[]", '{"label"'],
)
def test_a_judge_that_says_something_else_is_an_error(text: str) -> None:
    score = one(LABELS).read_verdict(text)
    assert (score.score, score.passed) == (None, False)
    assert (score.error or "").startswith("the judge's answer")


def test_a_score_is_brought_from_its_range_to_zero_and_one() -> None:
    grader = one(SCORES)
    judge = grader.judge(context("Hi"))
    assert judge is not None
    assert judge.response_format["json_schema"]["schema"]["properties"]["score"] == {
        "type": "number", "minimum": 1.0, "maximum": 5.0,
    }  # fmt: skip
    assert [grader.read_verdict(f'{{"score": {n}}}').score for n in (1, 3, 5)] == [0.0, 0.5, 1.0]
    assert [grader.read_verdict(f'{{"score": {n}}}').passed for n in (3.9, 4)] == [False, True]
    for text in ('{"score": 6}', '{"score": "4"}', '{"score": true}', '{"score": 1e999}'):
        assert grader.read_verdict(text).score is None
    unbounded = {name: value for name, value in SCORES.items() if name not in ("range", "pass_threshold")}
    assert [one(unbounded).read_verdict(f'{{"score": {n}}}').passed for n in (0.49, 0.5)] == [False, True]


@pytest.mark.parametrize(
    ("raw", "code", "message"),
    [
        ({"type": "python", "name": "p", "source": "import os"}, "unsupported_grader", "no code of a user is executed"),
        ({"type": "endpoint", "name": "p"}, "unsupported_grader", "asked from elsewhere"),
        ({"type": "multi", "name": "p"}, "unsupported_grader", "list its graders"),
        ({"type": "other"}, "invalid_grader", "not a grader"),
        ("exact", "invalid_grader", "not a grader"),
        (check("equals"), "invalid_grader", "operation"),
        (check("eq") | {"case": True}, "invalid_grader", "case"),
        (check("eq") | {"input": "{{item.x | upper}}"}, "invalid_template", "nothing is evaluated"),
        (LABELS | {"passing_labels": ["kind"]}, "invalid_input", "among labels"),
        (LABELS | {"input": [{"role": "user", "content": {"type": "input_image"}}]}, "invalid_input", "must be text"),
        (LABELS | {"input": []}, "invalid_input", "1 to"),
        (SCORES | {"range": [2, 1]}, "invalid_input", "range"),
        (SCORES | {"pass_threshold": 7}, "invalid_input", "outside of the range"),
        (SCORES | {"sampling_params": {"top_k": 3}}, "invalid_input", "top_k"),
        ({"type": "json_schema", "name": "j", "schema": {"type": "nothing"}}, "invalid_input", "not a JSON schema"),
        ({"type": "json_schema", "name": "j", "schema": {"pattern": "("}}, "invalid_input", "not a JSON schema"),
        ({"type": "json_schema", "name": "j", "schema": {"patternProperties": {}}}, "unsupported_parameter", "patternProperties"),
        ({"type": "text_similarity", "name": "s", "input": "", "reference": "", "evaluation_metric": "cosine", "pass_threshold": 0.5}, "unsupported_grader", "cosine"),
        ({"type": "text_similarity", "name": "s", "input": "", "reference": "", "evaluation_metric": "rogue_l", "pass_threshold": 0.5}, "unknown_name", "rouge_l"),
    ],
)  # fmt: skip
def test_what_is_refused_by_name(raw: Any, code: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as error:
        read_graders([raw])
    assert error.value.code == code
    assert (error.value.param or "").startswith("testing_criteria[0]")


def test_names_are_unique_and_fields_known() -> None:
    with pytest.raises(InvalidInput, match="two graders are named 'c'"):
        read_graders([check("eq"), check("ne")])
    with pytest.raises(InvalidInput, match=r"there is no item.reference; did you mean 'referenc'"):
        one(check("eq")).check_item({"referenc": ""})
    one(LABELS).check_item({})
