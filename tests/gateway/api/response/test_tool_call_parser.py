"""Parsing tool calls: in one piece, cut anywhere, and never where there are none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.gateway.api.response.tool_call_parser import ParsedCall, ToolCallParser

NAMES = {"weather", "time"}
WEATHER = '{"name": "weather", "arguments": {"city": "Bonn"}}'
TIME = '{"name": "time", "arguments": {}}'
BARE = '{"name": "weather", "parameters": {"city": "Bonn"}}'
BONN = ParsedCall("weather", '{"city": "Bonn"}')

# What models write, whole and broken, in every order.
pieces = st.sampled_from(
    [
        *(f"<tool_call>\n{call}\n</tool_call>" for call in (WEATHER, TIME, '{"name": "other", "arguments": {}}', "{}")),
        *(f"[TOOL_CALLS] [{calls}]" for calls in (WEATHER, f"{WEATHER}, {TIME}", "", f'{WEATHER}, {{"name": 1}}')),
        *(
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "<|python_tag|>",
            BARE,
            ";",
            " ",
            "\n",
            "{",
            "}",
            "[",
            "]",
            '"',
            "\\",
        ),
        *("<tool", "_call>", "Hi", " there. ", '{"a": "}"}', WEATHER, f"<tool_call>{WEATHER}", "<"),
    ]
)
answers = st.lists(pieces, max_size=8).map("".join)


def parse(parts: list[str], *, parallel: bool = True) -> list[str | ParsedCall]:
    """Every part of the answer, with neighbouring texts as one."""
    parser = ToolCallParser(NAMES, parallel=parallel)
    parsed: list[str | ParsedCall] = []
    for one in [*(one for part in parts for one in parser.push(part)), *parser.end()]:
        if isinstance(one, str) and parsed and isinstance(parsed[-1], str):
            parsed[-1] += one
        else:
            parsed.append(one)
    return parsed


@given(answers, st.data())
def test_how_it_is_cut_changes_nothing(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(parts) == parse([text]) == parse(list(text))


@given(answers)
def test_calls_are_proper_and_what_is_around_them_is_not_lost(text: str) -> None:
    parsed = parse([text])
    for call in (one for one in parsed if isinstance(one, ParsedCall)):
        assert call.name in NAMES
        assert isinstance(json.loads(call.arguments), dict)
        assert call.arguments in text
    if not any(isinstance(one, ParsedCall) for one in parsed):
        assert "".join(map(str, parsed)) == text


@given(st.text(alphabet=st.sampled_from('<>{}[]"\\ abtoolcTOL_/|;:\n'), max_size=60))
def test_text_without_calls_stays_as_it_is(text: str) -> None:
    assert "".join(map(str, parse(list(text)))) == text


@given(
    st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5), max_size=4)
)
def test_arguments_are_what_the_model_wrote(arguments: dict[str, object]) -> None:
    written = json.dumps({"name": "weather", "arguments": arguments})
    (call,) = parse([f"<tool_call>\n{written}\n</tool_call>"])
    assert isinstance(call, ParsedCall)
    assert json.loads(call.arguments) == arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"<tool_call>\n{WEATHER}\n</tool_call>", [BONN]),
        (f"<tool_call>{WEATHER}</tool_call>\n<tool_call>{TIME}</tool_call>", [BONN, ParsedCall("time", "{}")]),
        (f"Let me see.\n<tool_call>\n{WEATHER}\n</tool_call>\n Done.", ["Let me see.", BONN, "Done."]),
        (f"<tool_call>{WEATHER}", [BONN]),
        (f"<tool_call>{WEATHER}\n<tool_call>{TIME}</tool_call>", [BONN, ParsedCall("time", "{}")]),
        (f"<tool_call><tool_call>{WEATHER}</tool_call>", ["<tool_call>", BONN]),
        (f"[TOOL_CALLS] [{WEATHER}, {TIME}]", [BONN, ParsedCall("time", "{}")]),
        (f"[TOOL_CALLS][{WEATHER}]", [BONN]),
        (BARE, [BONN]),
        (f"\n{BARE}; {BARE}", [BONN, BONN]),
        (f"{BARE}; and so on", [BONN, "; and so on"]),
        (f"<|python_tag|>{BARE}", [BONN]),
        ('{"type": "function", "name": "time", "parameters": {}}', [ParsedCall("time", "{}")]),
        (f"Sure: {BARE}", [f"Sure: {BARE}"]),
        ('{"name": "Bob", "parameters": {}}', ['{"name": "Bob", "parameters": {}}']),
        ('<tool_call>{"name": "time"}</tool_call>', ['<tool_call>{"name": "time"}</tool_call>']),
        ('<tool_call>{"name": "time", "arguments": "{}"}', ['<tool_call>{"name": "time", "arguments": "{}"}']),
        ('<tool_call>{"name": "time", "argum', ['<tool_call>{"name": "time", "argum']),
        (" ", [" "]),
        ("", []),
    ],
)
def test_what_is_and_what_is_not_a_call(text: str, expected: list[str | ParsedCall]) -> None:
    assert parse([text]) == expected


def test_only_the_first_call_counts_where_one_is_allowed() -> None:
    assert parse([f"<tool_call>{WEATHER}</tool_call><tool_call>{TIME}</tool_call>"], parallel=False) == [BONN]


def test_text_is_held_back_no_longer_than_it_may_be_a_call() -> None:
    parser = ToolCallParser(NAMES)
    assert parser.push("A <") == ["A"]
    assert parser.push("b> c") == [" <b> c"]
    assert parser.push(" <tool_call>") == []
    assert parser.push(WEATHER) == [BONN]


def test_depth_is_no_danger() -> None:
    text = "<tool_call>" + '{"name":' * 50_000 + "}" * 50_000
    assert parse([text]) == [text]
