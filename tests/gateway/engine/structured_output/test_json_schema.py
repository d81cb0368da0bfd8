"""What is changed in a JSON schema before llguidance reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunery.gateway.engine.sampling_params import Constraint
from tunery.gateway.engine.structured_output import json_schema
from tunery.gateway.engine.structured_output.grammars import Grammars
from tunery.gateway.engine.structured_output.json_schema import FORMATS, prepare

ANNOTATIONS = [
    "password",
    "uri-reference",
    "iri",
    "iri-reference",
    "uri-template",
    "idn-email",
    "idn-hostname",
    "json-pointer",
    "relative-json-pointer",
    "regex",
    "byte",
    "binary",
    "int32",
    "int64",
    "float",
    "double",
    "char",
    "cuid",
    "cuid2",
    "ulid",
    "nanoid",
    "base64",
    "base64url",
    "jwt",
    "emoji",
    "cidrv4",
    "cidrv6",
    "e164",
    "x-own",
]


@pytest.fixture(scope="module")
def grammars(tiny_base_folder: Path) -> Grammars:
    return Grammars(tiny_base_folder, 384, [2])


def test_every_format_that_is_kept_is_one_the_library_knows_and_no_other_is_kept(grammars: Grammars) -> None:
    for name in FORMATS:
        assert prepare({"type": "string", "format": name}) == {"type": "string", "format": name}
    texts = {name: {"type": "string", "format": name} for name in (*FORMATS, *ANNOTATIONS)}
    others: list[dict[str, Any]] = [
        {"format": "x"},
        {"type": "integer", "format": "int64"},
        {"type": "string", "format": 3},
    ]
    schema = {"type": "object", "properties": texts, "items": others, "$defs": {"a": {"anyOf": others}}}
    grammars.compile(Constraint("json_schema", json.dumps(schema)))
    kept = {name for name, text in prepare(schema)["properties"].items() if "format" in text}
    assert kept == FORMATS


def test_names_and_values_are_no_keywords() -> None:
    same: list[dict[str, Any]] = [
        {
            "properties": {"format": {"type": "string"}, "pattern": {"const": {"format": "zip", "pattern": "(?=x)"}}},
            "additionalProperties": True,
        },
        {"enum": [{"format": "zip"}], "default": {"format": "zip"}, "examples": [{"format": "zip"}]},
        {"$defs": {"format": {"type": "null"}}, "items": False, "additionalProperties": True},
    ]
    for schema in same:
        before = json.dumps(schema)
        assert prepare(schema) == schema
        assert json.dumps(schema) == before


A = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = {**A, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "prepared"),
    [
        (A, CLOSED),
        ({"properties": {"b": A}}, {"properties": {"b": CLOSED}, "additionalProperties": False}),
        ({"items": A}, {"items": CLOSED}),
        ({"anyOf": [A, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"$ref": "#/$defs/a", "$defs": {"a": A}}, {"$ref": "#/$defs/a", "$defs": {"a": CLOSED}}),
    ],
)
def test_an_object_has_no_other_properties_than_those_listed(schema: dict[str, Any], prepared: dict[str, Any]) -> None:
    assert prepare(schema) == prepared


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {}},
        {**A, "additionalProperties": True},
        {**A, "additionalProperties": {"type": "string"}},
        {**A, "patternProperties": {"^x": {}}},
        {**A, "required": ["b"]},
        {**A, "minProperties": 2},
        {**A, "unevaluatedProperties": {"type": "string"}},
        {**A, "dependentRequired": {"a": ["b"]}},
        {**A, "$ref": "#/$defs/b", "$defs": {"b": {"properties": {"b": {"type": "null"}}}}},
        {**A, "anyOf": [{"properties": {"b": {"type": "null"}}}]},
        {"allOf": [A, {"properties": {"b": {"type": "null"}}}]},
        {"oneOf": [A, {"properties": {"a": {"type": "integer"}, "b": {"type": "null"}}}]},
        {"items": A, "not": {"type": "null"}},
    ],
    ids=json.dumps,
)
def test_an_object_stays_open_where_the_schema_says_so_or_other_schemas_describe_it(schema: dict[str, Any]) -> None:
    assert prepare(schema) == schema


def test_what_zod_writes_for_an_email_is_an_email(grammars: Grammars) -> None:
    pattern = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_]+)@([A-Za-z0-9]*\.)+[A-Za-z]{2,}$"
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "string",
        "format": "email",
        "pattern": pattern,
    }
    assert "pattern" not in prepare(schema)
    grammars.compile(Constraint("json_schema", json.dumps(schema)))
    assert prepare({"pattern": pattern}) == {"pattern": pattern}, "nothing else says what it must be"


def node(**next_: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"next": next_}, "required": ["next"], "additionalProperties": False}


SELF = {"$ref": "#"}
ENDLESS: list[dict[str, Any]] = [
    SELF,
    node(**SELF),
    {"type": "array", "items": SELF, "minItems": 1},
    {"type": "array", "prefixItems": [{"type": "null"}, SELF], "minItems": 2},
    {"anyOf": [node(**SELF), {"type": "array", "items": SELF, "minItems": 2}]},
    {"allOf": [{"type": "object"}, node(**SELF)]},
    {"type": ["object", "array"], "properties": {"a": SELF}, "required": ["a"], "items": SELF, "minItems": 1},
    {"type": "object", "additionalProperties": SELF, "required": ["anything"]},
    {"$ref": "#/$defs/a", "$defs": {"a": node(**{"$ref": "#/$defs/b~1c"}), "b/c": node(**{"$ref": "#/$defs/a"})}},
]
FINITE: list[dict[str, Any]] = [
    {},
    {"$ref": "#/$defs/missing"},
    {"$ref": "https://example.com/schema"},
    {"type": "object", "properties": {"next": SELF}},
    {"type": "array", "items": SELF},
    {"type": ["object", "null"], "properties": {"next": SELF}, "required": ["next"]},
    {"anyOf": [node(**SELF), {"type": "null"}]},
    node(anyOf=[SELF, {"type": "null"}]),
    {"enum": [1], "type": "object", "required": ["a"], "properties": {"a": SELF}},
    {
        "$ref": "#/$defs/a",
        "$defs": {"a": node(**{"$ref": "#/$defs/b"}), "b": {"oneOf": [{"$ref": "#/$defs/a"}, {"const": 1}]}},
    },
]


def test_what_only_an_endless_text_satisfies_is_refused_and_nothing_else() -> None:
    for schema in ENDLESS:
        with pytest.raises(ValueError, match="only an endless text satisfies it"):
            prepare(schema)
    for schema in FINITE:
        prepare(schema)


@pytest.mark.parametrize("size", [50, 100])
def test_the_work_grows_with_the_schema_and_no_faster(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """References all over each other: every one is followed a bounded number of times."""
    followed: list[str] = []
    find = json_schema._target

    def noted(root: Any, reference: str) -> Any:
        followed.append(reference)
        return find(root, reference)

    monkeypatch.setattr(json_schema, "_target", noted)
    every = [{"$ref": f"#/$defs/{number}"} for number in range(size)]
    parts = {str(number): {"type": "array", "minItems": 1, "items": {"anyOf": every}} for number in range(size)}
    with pytest.raises(ValueError, match="endless"):
        prepare({"anyOf": every, "$defs": parts})
    assert len(followed) == 2 * size


def test_a_long_chain_of_references_has_an_end() -> None:
    chain: dict[str, Any] = {str(number): node(**{"$ref": f"#/$defs/{number + 1}"}) for number in range(3000)}
    prepare({"$ref": "#/$defs/0", "$defs": chain | {"3000": {"type": "null"}}})
    with pytest.raises(ValueError, match="endless"):
        prepare({"$ref": "#/$defs/0", "$defs": chain | {"3000": {"$ref": "#/$defs/7"}}})
