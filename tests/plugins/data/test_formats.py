"""Every format becomes the one conversation, or says all that is wrong with it; whatever JSON it is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery.plugins.data.formats import (
    ALPACA,
    BUILT_IN,
    CHAT,
    OPENAI_PREFERENCE,
    PREFERENCE,
    SHAREGPT,
    RowInvalid,
)
from tunery.plugins.data.rows import Row, parse_line, read_rows
from tunery.plugins.hookspecs import FormatInfo
from tunery.registry.errors import InvalidData

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "good"), ("assistant", "bad")))
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
READ_CALL = {**CALL, "function": {"name": "f", "arguments": {"x": 1}}}


def read(row: dict[str, Any], formats: tuple[FormatInfo, ...] = BUILT_IN) -> Row:
    found = parse_line(1, json.dumps(row).encode(), formats)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("row", "name", "messages"),
    [
        ({"messages": [USER, {**GOOD, "weight": 0}, USER, BAD]}, "chat", [USER, {**GOOD, "weight": 0}, USER, BAD]),
        ({"prompt": "q", "completion": "good"}, "prompt-completion", [USER, GOOD]),
        ({"instruction": "q", "output": "good"}, "alpaca", [USER, GOOD]),
        ({"instruction": "q", "input": "", "output": "good", "text": "…"}, "alpaca", [USER, GOOD]),
        (
            {"instruction": "q", "input": "z", "output": "good", "system": "s", "history": [["q", "bad"]]},
            "alpaca",
            [{"role": "system", "content": "s"}, USER, BAD, {"role": "user", "content": "q\n\nz"}, GOOD],
        ),
        (
            {
                "id": 3,
                "system": "s",
                "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}],
            },
            "sharegpt",
            [{"role": "system", "content": "s"}, USER, GOOD],
        ),
    ],
)
def test_each_format_is_recognised_and_means_the_same(
    row: dict[str, Any], name: str, messages: list[dict[str, Any]]
) -> None:
    found = read(row)
    assert (found.format, found.messages, found.tools, found.rejected) == (name, messages, None, None)


def test_functions_and_their_calls_come_with_arguments_as_objects() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "2"}
    found = read({"messages": [USER, called, result, GOOD], "tools": [TOOL], "parallel_tool_calls": False})
    assert found.tools == [TOOL]
    assert found.messages == [USER, {"role": "assistant", "content": "", "tool_calls": [READ_CALL]}, result, GOOD]
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "good"},
    ]
    shared = read({"conversations": turns, "tools": json.dumps([TOOL])})
    assert shared.tools == [TOOL]
    assert shared.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert [message["role"] for message in shared.messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (
            {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
            "openai-preference",
        ),
        (
            {"input": {"messages": [USER]}, "preferred_completion": [GOOD], "non_preferred_completion": [BAD]},
            "openai-preference",
        ),
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "preference"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, "preference"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "preference"),
    ],
)
def test_preferences_in_every_spelling_end_with_the_better_answer(row: dict[str, Any], name: str) -> None:
    found = read(row)
    assert (found.format, found.messages, found.rejected) == (name, [USER, GOOD], [BAD])


def test_an_implicit_prompt_of_texts_is_what_both_begin_with_up_to_a_word() -> None:
    found = read({"chosen": "Say hi: hello", "rejected": "Say hi: help"})
    assert (found.messages[0]["content"], found.messages[1]["content"]) == ("Say hi: ", "hello")
    assert found.rejected == [{"role": "assistant", "content": "help"}]


@pytest.mark.parametrize(
    ("form", "row", "paths"),
    [
        (CHAT, {"messages": [USER, {**GOOD, "weight": 2}]}, ["$.messages[1].weight"]),
        (CHAT, {"messages": [{**USER, "weight": 1}, GOOD], "weight": 1}, ["$.weight", "$.messages[0].weight"]),
        (CHAT, {"messages": [USER, {"role": "assistant", "tool_calls": []}]}, ["$.messages[1].tool_calls"]),
        (CHAT, {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
         ["$.messages[1].tool_calls[0].function.arguments"]),
        (CHAT, {"messages": [USER, GOOD], "tools": [3], "parallel_tool_calls": "no"}, ["$.tools[0]", "$.parallel_tool_calls"]),
        (ALPACA, {"instruction": "q", "input": 3, "history": [["a"]]}, ["$.output", "$.input", "$.history[0]"]),
        (SHAREGPT, {"conversations": [{"from": "humann", "value": "q"}, {"from": "gpt"}, {"from": "gpt", "value": ""}]},
         ["$.conversations[0].from", "$.conversations[1].value", "$.conversations[2].value"]),
        (SHAREGPT, {"conversations": [{"from": "human", "value": "q"}]}, ["$.conversations"]),
        (SHAREGPT, {"conversations": [{"from": "function_call", "value": "no"}]}, ["$.conversations[0].value"]),
        (OPENAI_PREFERENCE, {"input": 3, "preferred_output": [GOOD]}, ["$.input", "$.input.messages", "$.non_preferred_output"]),
        (OPENAI_PREFERENCE, {"input": {"messages": [USER]}, "preferred_output": [USER], "non_preferred_output": [BAD]}, ["$.preferred_output"]),
        (PREFERENCE, {"prompt": "q", "chosen": "same", "rejected": "same"}, ["$.rejected"]),
        (PREFERENCE, {"chosen": "one", "rejected": "two"}, ["$.prompt"]),
        (PREFERENCE, {"chosen": [GOOD], "rejected": [BAD]}, ["$.prompt"]),
        (PREFERENCE, {"prompt": "q", "chosen": "a"}, ["$.rejected"]),
    ],
)  # fmt: skip
def test_everything_wrong_with_a_row_is_said_at_its_place(
    form: FormatInfo, row: dict[str, Any], paths: list[str]
) -> None:
    with pytest.raises(RowInvalid) as caught:
        read(row, (form,))
    assert [path for path, _ in caught.value.faults] == paths


def test_a_format_by_name_says_what_it_misses_rather_than_that_nothing_fits(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "q"}\n')
    with pytest.raises(InvalidData, match="fit no format"):
        read_rows(path, formats=BUILT_IN)
    with pytest.raises(InvalidData, match=r"\$\.output: is missing"):
        read_rows(path, formats=[ALPACA])


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from(["", "q", "user", "assistant", "human", "gpt", "{}"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "from",
                    "value",
                    "weight",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "messages",
                    "id",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
KEYS = (
    "messages", "tools", "prompt", "completion", "instruction", "input", "output", "history", "system", "conversations",
    "preferred_output", "non_preferred_output", "chosen", "rejected",
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(row=st.dictionaries(st.sampled_from(KEYS), values, max_size=5), form=st.sampled_from(BUILT_IN))
def test_any_object_is_a_conversation_or_faults_at_paths(row: dict[str, Any], form: FormatInfo) -> None:
    faults: tuple[tuple[str, str], ...] = ()
    try:
        found = read(row, (form,))
    except RowInvalid as error:
        faults = error.faults
        found = Row(1, form.name, [{"role": "assistant", "content": "-"}])
    assert all(path.startswith("$") and text for path, text in faults)
    assert all(isinstance(message["content"], str) for message in [*found.messages, *(found.rejected or [])])
    assert any(message["role"] == "assistant" for message in found.messages)
