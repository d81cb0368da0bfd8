"""Tool call grammars: whatever they allow parses back as calls of the functions that were offered."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from tunery.gateway.api.request.tool_call_grammar import MAX_CALLS, MAX_SCHEMA_BYTES, tool_call_constraint
from tunery.gateway.api.request.tools import Function
from tunery.gateway.api.response.tool_call_parser import ParsedCall, ToolCallParser
from tunery.gateway.engine.sampling_params import Constraint
from tunery.gateway.engine.structured_output.grammars import Grammars
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.data.render.tools import CallStyle
from tunery.registry.errors import InvalidInput

EOS = 2
DAYS = {"$defs": {"Day": {"enum": ["monday", "tuesday"]}}}
WEATHER = Function(
    "get_weather",
    {
        "type": "object",
        "properties": {"day": {"$ref": "#/$defs/Day"}, "metric": {"type": "boolean"}},
        "required": ["day", "metric"],
        "additionalProperties": False,
        **DAYS,
    },
)
TIME = Function("time", {"type": "object", "properties": {}, "additionalProperties": False})
BOTH = (WEATHER, TIME)
ANSWER = Constraint("json_schema", json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}))  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base's tokenizer with Mistral's mark as a control token."""
    folder = tmp_path_factory.mktemp("control")
    tokenizer = Tokenizer.from_file(str(tiny_base_folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text((tiny_base_folder / "tokenizer_config.json").read_text())
    return folder


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Renderer:
    return Renderer(folder)


@pytest.fixture(scope="module")
def grammars(folder: Path, renderer: Renderer) -> Grammars:
    return Grammars(folder, renderer.vocab_size, [EOS])


def generated(grammars: Grammars, renderer: Renderer, constraint: Constraint, seed: int) -> str:
    """A random output that the grammar allows, ended as soon as it may."""
    chance, guide = random.Random(seed), grammars.start(constraint)
    ids: list[int] = []
    while len(ids) < 2000:
        bits = np.unpackbits(guide.mask().view(np.uint8), bitorder="little")
        allowed = [int(token) for token in np.nonzero(bits)[0]]
        if EOS in allowed and (len(allowed) == 1 or chance.random() < 0.5):
            return renderer.decode(ids, skip_special=False)
        ids.append(chance.choice([token for token in allowed if token != EOS]))
        guide.accept(ids[-1])
    raise AssertionError("it never ends")


def calls_in(text: str) -> list[str | ParsedCall]:
    parser = ToolCallParser({"get_weather", "time"})
    return [*parser.push(text), *parser.end()]


@pytest.mark.slow
@pytest.mark.parametrize("style", ["hermes", "llama", "mistral"])
@pytest.mark.parametrize("several", [False, True])
def test_whatever_is_allowed_reads_back_as_calls(
    grammars: Grammars, renderer: Renderer, style: CallStyle, several: bool
) -> None:
    control = renderer.control_ids(("[TOOL_CALLS]",))
    assert len(control) == 1
    constraint = tool_call_constraint(BOTH, style, several=several, control=control)
    counts, names = set(), set()
    for seed in range(30):
        calls = calls_in(generated(grammars, renderer, constraint, seed))
        for call in calls:
            assert isinstance(call, ParsedCall)
            names.add(call.name)
            arguments = json.loads(call.arguments)
            if call.name == "time":
                assert arguments == {}
            else:
                assert arguments["day"] in ("monday", "tuesday")
                assert isinstance(arguments["metric"], bool)
        counts.add(len(calls))
    assert max(counts) <= MAX_CALLS
    assert names == {"get_weather", "time"}
    assert (counts == {1}) == (not several or style == "llama")


@pytest.mark.parametrize("style", ["hermes", "mistral"])
def test_a_call_or_an_answer_of_a_form(grammars: Grammars, renderer: Renderer, style: CallStyle) -> None:
    constraint = tool_call_constraint((WEATHER,), style, several=False, control={}, instead=ANSWER)
    kinds = set()
    for seed in range(30):
        (call,) = calls_in(generated(grammars, renderer, constraint, seed))
        kinds.add(type(call))
        assert isinstance(call, ParsedCall) or set(json.loads(call)) == {"ok"}
    assert kinds == {str, ParsedCall}
    with pytest.raises(InvalidInput, match="cannot be told from a JSON answer"):
        tool_call_constraint((WEATHER,), "llama", several=False, control={}, instead=ANSWER)


@pytest.mark.parametrize(
    "written",
    [
        '<tool_call>\n{"name": "get_weather", "arguments": {"day": "monday", "metric": true}}\n</tool_call>',
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
    ],
)
def test_what_the_template_shows_is_what_is_allowed(grammars: Grammars, renderer: Renderer, written: str) -> None:
    guide = grammars.start(tool_call_constraint(BOTH, "hermes", several=True, control={}))
    for token in renderer.encode(written):
        assert np.unpackbits(guide.mask().view(np.uint8), bitorder="little")[token]
        guide.accept(token)
    assert np.unpackbits(guide.mask().view(np.uint8), bitorder="little")[EOS]


@pytest.mark.parametrize("parameters", [{"type": "object", "properties": 3}, {"$ref": "#/nowhere"}])
def test_a_schema_that_cannot_be_followed_is_refused_by_the_engine(
    grammars: Grammars, parameters: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        grammars.compile(tool_call_constraint((Function("f", parameters),), "hermes", several=False, control={}))
    assert caught.value.code == "invalid_constraint"


@pytest.mark.parametrize("style", ["hermes", "mistral"])
def test_calls_end_although_a_model_would_go_on(grammars: Grammars, renderer: Renderer, style: CallStyle) -> None:
    """Always the token that is furthest from an end: the answer still has the most calls there may
    be, and then nothing."""
    guide = grammars.start(
        tool_call_constraint((TIME,), style, several=True, control=renderer.control_ids(("[TOOL_CALLS]",)))
    )
    ids: list[int] = []
    while (bits := np.unpackbits(guide.mask().view(np.uint8), bitorder="little").nonzero()[0].tolist()) != [EOS]:
        ids.append(next(token for token in bits if token != EOS))
        guide.accept(ids[-1])
    assert len(calls_in(renderer.decode(ids, skip_special=False))) == MAX_CALLS


UNSUPPORTED: list[dict[str, Any]] = [
    {"not": {"type": "string"}},
    {"if": {"properties": {"day": {"const": "monday"}}}, "then": {"required": ["metric"]}, "else": {}},
    {"propertyNames": {"pattern": "^[a-z]+$"}},
    {"maxProperties": 2},
    {"minProperties": 1},
    {"dependentRequired": {"day": ["metric"]}},
    {"unevaluatedProperties": False},
    {"properties": {"mail": {"type": "string", "pattern": "^(?!x)y$"}}},
    {"properties": {"tags": {"type": "array", "uniqueItems": True, "contains": {"const": 1}}}},
    {"properties": {"next": {"$ref": "#"}}, "required": ["next"]},
]


@pytest.mark.parametrize("style", ["hermes", "mistral"])
def test_where_a_call_is_optional_no_keyword_refuses_the_request(grammars: Grammars, style: CallStyle) -> None:
    for keywords in UNSUPPORTED:
        function = Function("f", {"type": "object", "properties": {}, **keywords})
        grammars.compile(tool_call_constraint((function,), style, several=False, control={}, instead=ANSWER))


def test_a_call_that_must_be_and_has_no_end_names_its_function() -> None:
    endless = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    with pytest.raises(InvalidInput, match=r"parameters of 'f' cannot be used: only an endless text") as caught:
        tool_call_constraint((WEATHER, Function("f", endless)), "hermes", several=False, control={})
    assert (caught.value.code, caught.value.param) == ("invalid_constraint", "tools")
    with pytest.raises(InvalidInput, match="larger than 256 KiB"):
        tool_call_constraint(
            (Function("f", {"description": "x" * MAX_SCHEMA_BYTES}),), "hermes", several=False, control={}
        )


def test_an_answer_instead_of_a_call_is_read_as_any_other_schema(grammars: Grammars) -> None:
    def constraint(**schema: Any) -> Constraint:
        return tool_call_constraint(
            (TIME,), "hermes", several=False, control={}, instead=Constraint("json_schema", json.dumps(schema))
        )

    grammars.compile(constraint(type="object", properties={"a": {"type": "string", "format": "password"}}))
    for schema, message in (
        ({"$ref": "#"}, "only an endless text"),
        ({"title": "x" * MAX_SCHEMA_BYTES}, "larger than 256 KiB"),
    ):
        with pytest.raises(InvalidInput, match=message) as caught:
            constraint(**schema)
        assert (caught.value.code, caught.value.param) == ("invalid_constraint", "response_format")
