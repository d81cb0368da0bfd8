"""Structured output: whichever allowed tokens are drawn, the text matches the constraint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tunery.gateway.engine.sampling_params import MAX_CONSTRAINT, Constraint
from tunery.gateway.engine.structured_output.grammars import Grammars
from tunery.gateway.engine.structured_output.guide import Guide, apply_masks
from tunery.registry.errors import InvalidInput

EOS, OTHER_EOS = 2, 1
EOS_IDS = frozenset({EOS, OTHER_EOS})
KNOWN, WIDTH = 384, 400  # the tokenizer's vocabulary, and a model's that is padded

# Four ways to go at each of six places: llguidance writes them all out.
FOUR_WAYS = [
    {"anyOf": [{"type": "object", "properties": {f"k{i}{j}": {"type": "string"}}} for j in range(4)]} for i in range(6)
]

few = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
seeds = st.integers(0, 2**32)
schemas = st.recursive(
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "string", "maxLength": 6},
            {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            {"type": "integer", "minimum": -20, "maximum": 300},
            {"enum": ["red", "green", 7, None]},
        ]
    ),
    lambda inner: (
        st.builds(lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 3}, inner)
        | st.builds(
            lambda parts: {
                "type": "object",
                "properties": parts,
                "required": sorted(parts)[:1],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["a", "b", "long name", 'quo"te']), inner, min_size=1, max_size=3),
        )
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_base_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_base_folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def grammars(tiny_base_folder: Path) -> Grammars:
    return Grammars(tiny_base_folder, WIDTH, EOS_IDS)


@pytest.fixture
def write(grammars: Grammars, tokenizer: Tokenizer) -> Callable[..., str]:
    """Draws tokens at random, evenly among the allowed ones, until an end of sequence."""

    def written(constraint: Constraint, seed: int, most: int = 400) -> str:
        guide, generator, tokens = grammars.start(constraint), torch.Generator().manual_seed(seed), list[int]()
        while len(tokens) < most:
            logits = torch.randn(1, WIDTH, generator=generator)
            apply_masks([guide], logits)
            token = int(logits.argmax())
            guide.accept(token)
            assert guide.failure == ""
            if token in EOS_IDS:
                return str(tokenizer.decode(tokens, skip_special_tokens=False))
            tokens.append(token)
        raise AssertionError(f"no end after {most} tokens: {tokenizer.decode(tokens)!r}")

    return written


def allowed(guide: Guide) -> set[int]:
    logits = torch.zeros(1, WIDTH)
    apply_masks([guide], logits)
    return set(logits[0].isfinite().nonzero()[:, 0].tolist())


def advance(guide: Guide, tokenizer: Tokenizer, text: str) -> Guide:
    for token in tokenizer.encode(text).ids:
        assert token in allowed(guide)
        guide.accept(token)
    return guide


def takes(grammars: Grammars, tokenizer: Tokenizer, constraint: Constraint, text: str) -> bool:
    """Whether the constraint lets a model write exactly `text`."""
    guide = grammars.start(constraint)
    for token in tokenizer.encode(text).ids:
        if token not in allowed(guide):
            return False
        guide.accept(token)
    return EOS in allowed(guide)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """The part of JSON schema that the strategy above writes."""
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "array":
            return type(value) is list and 1 <= len(value) <= 3 and all(fits(item, schema["items"]) for item in value)
        case "object":
            parts = schema["properties"]
            return (
                type(value) is dict
                and set(schema["required"]) <= set(value) <= set(parts)
                and all(fits(value[key], parts[key]) for key in value)
            )
        case "string":
            return type(value) is str and len(value) <= 6 and re.search(schema.get("pattern", ""), value) is not None
        case "integer":
            return type(value) is int and -20 <= value <= 300
        case kind:
            return type(value) is {"boolean": bool, "null": type(None)}[kind]


# -- what is written --------------------------------------------------------------------------------------------------


@few
@given(schema=schemas, seed=seeds)
def test_any_allowed_tokens_make_json_of_the_schema(
    write: Callable[..., str], schema: dict[str, Any], seed: int
) -> None:
    text = write(Constraint("json_schema", json.dumps(schema)), seed)
    assert fits(json.loads(text), schema), (schema, text)


PATTERNS = [r"[a-f]{1,8}@[a-f]+\.(com|org)x{0,3}y", r"(yes|no|n/a|a\/b)", r"\d{4}-\d\d", r"\w{3}\n", "^é+ü$"]


@few
@given(seed=seeds, pattern=st.sampled_from(PATTERNS))
def test_any_allowed_tokens_match_the_regular_expression(write: Callable[..., str], seed: int, pattern: str) -> None:
    assert re.fullmatch(pattern, write(Constraint("regex", pattern), seed, most=4000), re.ASCII)


@few
@given(seed=seeds)
def test_any_allowed_tokens_are_a_sentence_of_the_grammar(write: Callable[..., str], seed: int) -> None:
    sums = 'start: term (("+" | "-") term)~0..3\nterm: NUMBER | "(" NUMBER "*" NUMBER ")"\nNUMBER: /[1-9][0-9]{0,3}/'
    text = write(Constraint("grammar", sums), seed)
    term = r"([1-9]\d{0,3}|\([1-9]\d{0,3}\*[1-9]\d{0,3}\))"
    assert re.fullmatch(rf"{term}([+-]{term}){{0,3}}", text)


def test_any_json_object_is_an_object_and_nothing_else(grammars: Grammars, tokenizer: Tokenizer) -> None:
    def json_object(text: str) -> bool:
        return takes(grammars, tokenizer, Constraint("json_object"), text)

    assert all(json_object(text) for text in ("{}", '{"a":[1,{"b":null}]}', '{"é": -1.5e3, "c": "x y"}'))
    assert not any(
        json_object(text) for text in ("[]", "1", '"a"', "null", "{} ", " {}", "{}{}", '{"a":1,}', "{'a':1}")
    )


def test_white_space_is_one_space_or_none(grammars: Grammars, tokenizer: Tokenizer) -> None:
    value = {"a": [1, {"b": "c"}], "d": {}}
    schema = Constraint("json_schema", '{"type": "object"}')
    for constraint in (Constraint("json_object"), schema):
        for text in (json.dumps(value), json.dumps(value, separators=(",", ":")), '{ "a" : [ 1 , 2 ] }'):
            assert takes(grammars, tokenizer, constraint, text)
        for text in ("{  }", "{\n}", "{\t}", '{"a":  1}', *(json.dumps(value, indent=n) for n in (1, 2, "\t"))):
            assert not takes(grammars, tokenizer, constraint, text)


def test_a_schema_may_choose_its_own_white_space(grammars: Grammars, tokenizer: Tokenizer) -> None:
    def schema(**asked: object) -> Constraint:
        return Constraint("json_schema", json.dumps({"type": "object", "x-guidance": asked}))

    assert not takes(grammars, tokenizer, schema(whitespace_flexible=False), '{"a": 1}')
    assert takes(grammars, tokenizer, schema(whitespace_flexible=False), '{"a":1}')
    assert takes(grammars, tokenizer, schema(whitespace_pattern=" {3}"), '{"a":   1}')
    assert not takes(grammars, tokenizer, schema(coerce_one_of=True), '{"a":   1}')


def test_properties_keep_the_order_of_the_schema(grammars: Grammars, tokenizer: Tokenizer) -> None:
    schema = {"properties": {"z": {"type": "null"}, "a": {"type": "null"}}, "required": ["a", "z"], "type": "object"}
    constraint = Constraint("json_schema", json.dumps({**schema, "additionalProperties": False}))
    assert takes(grammars, tokenizer, constraint, '{"z":null,"a":null}')
    assert not takes(grammars, tokenizer, constraint, '{"a":null,"z":null}')


# -- the end ----------------------------------------------------------------------------------------------------------


def test_every_end_of_sequence_is_allowed_where_the_text_may_end_and_only_there(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    guide = grammars.start(Constraint("regex", "ab{1,2}"))
    assert not EOS_IDS & allowed(guide)
    assert not EOS_IDS & allowed(advance(guide, tokenizer, "a"))
    assert allowed(advance(guide, tokenizer, "b")) > EOS_IDS
    assert not guide.finished
    assert allowed(advance(guide, tokenizer, "b")) == EOS_IDS
    assert guide.finished
    guide.accept(OTHER_EOS)
    assert (guide.finished, guide.failure, allowed(guide)) == (True, "", set(EOS_IDS))


def test_an_early_end_of_sequence_finishes(grammars: Grammars, tokenizer: Tokenizer) -> None:
    guide = advance(grammars.start(Constraint("regex", "a+")), tokenizer, "a")
    assert not guide.finished
    guide.accept(OTHER_EOS)
    assert guide.finished
    assert allowed(guide) == EOS_IDS


def test_an_end_of_sequence_that_is_plain_text_does_not_cut_a_string(
    tiny_base_folder: Path, tokenizer: Tokenizer
) -> None:
    (letter,) = tokenizer.encode("x").ids
    grammars = Grammars(tiny_base_folder, WIDTH, {EOS, letter})
    guide = advance(grammars.start(Constraint("json_schema", '{"type":"string"}')), tokenizer, '"a')
    assert not {EOS, letter} & allowed(guide)
    assert {EOS, letter} == allowed(advance(guide, tokenizer, '"'))


def test_special_tokens_are_not_text(grammars: Grammars, tokenizer: Tokenizer) -> None:
    inside = allowed(advance(grammars.start(Constraint("json_schema", '{"type":"string"}')), tokenizer, '"'))
    assert len(inside) > 200
    assert not inside & {0, 1, 2}


def test_a_token_that_was_not_allowed_fails_the_guide_and_not_its_neighbours(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    bad, good = (grammars.start(Constraint("regex", "abc")) for _ in range(2))
    bad.accept(tokenizer.encode("c").ids[0])
    logits = torch.zeros(2, WIDTH)
    apply_masks([bad, good], logits)
    assert bad.finished
    assert "doesn't satisfy the grammar" in bad.failure
    assert "\n" not in bad.failure
    assert set(logits[0].isfinite().nonzero()[:, 0].tolist()) == EOS_IDS
    assert logits[1, tokenizer.encode("a").ids[0]] == 0
    assert good.failure == ""


# -- the batch --------------------------------------------------------------------------------------------------------


@few
@given(rows=st.lists(st.sampled_from([None, "[ab]+", "x[0-9]{3}", "json"]), max_size=8), seed=seeds)
def test_rows_without_a_guide_keep_every_bit_and_others_are_as_alone(
    grammars: Grammars, rows: list[str | None], seed: int
) -> None:
    def started() -> list[Guide | None]:
        kinds = {"json": Constraint("json_object")}
        return [None if row is None else grammars.start(kinds.get(row, Constraint("regex", row))) for row in rows]

    before = torch.randn(len(rows), WIDTH, generator=torch.Generator().manual_seed(seed))
    before[:, 5], before[:, 6], before[:, 7] = -0.0, torch.nan, torch.inf
    together = before.clone()
    apply_masks(started(), together)
    for i, (row, guide) in enumerate(zip(rows, started(), strict=True)):
        alone = before[i : i + 1].clone()
        apply_masks([guide], alone)
        assert torch.equal(together[i].view(torch.int32), alone[0].view(torch.int32))
        kept = together[i].view(torch.int32) == before[i].view(torch.int32)
        assert kept.all() if row is None else 0 < kept.sum() < WIDTH
        assert (together[i][~kept] == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_packed_mask_says_what_apply_does(grammars: Grammars, dtype: torch.dtype) -> None:
    guide = grammars.start(Constraint("json_object"))
    mask = guide.mask()
    assert mask.shape == (-(-WIDTH // 32),)
    logits = torch.zeros(1, WIDTH, dtype=dtype)
    apply_masks([guide], logits)
    allowed = [bool(mask[i // 32] >> (i % 32) & 1) for i in range(WIDTH)]
    assert allowed == logits[0].isfinite().tolist()
    assert any(allowed)


@pytest.mark.parametrize("width", [KNOWN, KNOWN + 1, WIDTH, 512, 300])
def test_the_model_may_have_more_or_fewer_tokens_than_the_tokenizer(
    tiny_base_folder: Path, tokenizer: Tokenizer, width: int
) -> None:
    guide = Grammars(tiny_base_folder, width, EOS_IDS).start(Constraint("regex", "(?s:.*)"))
    logits = torch.zeros(1, width)
    apply_masks([guide], logits)
    assert logits[0, 3 : min(width, KNOWN)].isfinite().any()
    assert not logits[0, KNOWN:].isfinite().any()


def test_guides_of_one_constraint_go_their_own_ways(grammars: Grammars, tokenizer: Tokenizer) -> None:
    constraint = Constraint("regex", "[ab][cd]")
    first, second = grammars.start(constraint), grammars.start(constraint)
    before = allowed(second)
    advance(first, tokenizer, "a")
    assert allowed(second) == before
    assert allowed(first) != before
    assert allowed(grammars.start(constraint)) == before


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("json_schema", "", "this JSON schema cannot be read: it is empty"),
        ("json_schema", "{", "cannot be read"),
        ("json_schema", "[1]", "it must be a JSON object"),
        ("json_schema", "true", "it must be a JSON object"),
        ("json_schema", '{"a":' * 5000 + "1" + "}" * 5000, "recursion"),
        ("json_schema", '{"type": "strin"}', "Invalid type: strin"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"not": {"type": "null"}}', "not"),
        ("json_schema", '{"type": "string", "pattern": "(?=a)b"}', "look-around"),
        ("json_schema", '{"$ref": "http://example.com/schema"}', "http://example.com/schema"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "minimum (5) is greater than maximum (3)"),
        (
            "json_schema",
            '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}',
            "only an endless text satisfies it",
        ),
        ("json_schema", '{"x-guidance": {"spaces": 3}}', "unknown field `spaces`"),
        ("json_schema", json.dumps({"allOf": FOUR_WAYS}), "too big"),
        ("json_schema", '{"type": "integer", "multipleOf": 999999937}', "fuel exhausted"),
        ("json_schema", '{"description": "' + "x" * MAX_CONSTRAINT + '"}', "larger than 256 KiB"),
        ("regex", " ", "this regular expression cannot be read: it is empty"),
        ("regex", "(", "unclosed group"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", r"[^\s\S]", "no text satisfies it"),
        ("regex", "\ud800", "cannot be read"),
        ("regex", "é" * (MAX_CONSTRAINT // 2 + 1), "larger than 256 KiB"),
        ("grammar", "start: nothing", 'unknown name: "nothing"'),
        ("grammar", "start: start", "no text satisfies it"),
        ("grammar", "start: <[380-399]>", "Token range end too large"),
    ],
)
def test_what_cannot_be_promised_is_refused_in_plain_words(
    grammars: Grammars, kind: Any, text: str, message: str
) -> None:
    for use in (grammars.compile, grammars.start):
        with pytest.raises(InvalidInput) as caught:
            use(Constraint(kind, text))
        assert caught.value.code == "invalid_constraint"
        assert message in caught.value.message
        assert len(caught.value.message) < 700
        assert not any(noise in caught.value.message for noise in ("\n", "^", "non-verbose", "backtrace", "panic"))


def test_the_tokenizer_is_read_only_when_a_constraint_comes(tmp_path: Path) -> None:
    grammars = Grammars(tmp_path, WIDTH, EOS_IDS)
    with pytest.raises(InvalidInput, match=r"tokenizer of the base in .* cannot be constrained"):
        grammars.compile(Constraint("json_object"))
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InvalidInput, match=r"tokenizer of the base in .* cannot be constrained"):
        grammars.compile(Constraint("json_object"))


def test_a_compiled_constraint_is_kept(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars.compile(Constraint("regex", "kept"))
    monkeypatch.setattr("tunery.gateway.engine.structured_output.grammars._grammar", None)
    grammars.start(Constraint("regex", "kept"))
    with pytest.raises(TypeError):
        grammars.start(Constraint("regex", "another"))
