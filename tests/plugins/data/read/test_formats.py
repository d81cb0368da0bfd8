"""Every format becomes the one conversation, or says all that is wrong with it; whatever JSON it is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery.plugins.data.read.dataset import read_rows
from tunery.plugins.data.read.formats import (
    ALPACA,
    BUILT_IN,
    CHAT,
    OPENAI_PREFERENCE,
    PREFERENCE,
    SHAREGPT,
    Fault,
    InvalidRow,
)
from tunery.plugins.data.read.row import Row, parse_row
from tunery.plugins.hookspecs import FormatInfo
from tunery.registry.errors import InvalidData

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "good"), ("assistant", "bad")))
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALL: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
READ_CALL = {**CALL, "function": {"name": "f", "arguments": {"x": 1}}}


def read(row: dict[str, Any], formats: tuple[FormatInfo, ...] = BUILT_IN) -> Row:
    parsed = parse_row(1, json.dumps(row).encode(), formats)
    assert parsed is not None
    return parsed


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
    parsed = read(row)
    assert (parsed.format, parsed.messages, parsed.tools, parsed.rejected) == (name, messages, None, None)


def test_functions_and_their_calls_come_with_arguments_as_objects() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "2"}
    parsed = read({"messages": [USER, called, result, GOOD], "tools": [TOOL], "parallel_tool_calls": False})
    assert parsed.tools == [TOOL]
    assert parsed.messages == [USER, {"role": "assistant", "content": "", "tool_calls": [READ_CALL]}, result, GOOD]
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
    parsed = read(row)
    assert (parsed.format, parsed.messages, parsed.rejected) == (name, [USER, GOOD], [BAD])


def test_an_implicit_prompt_of_texts_is_what_both_begin_with_up_to_a_word() -> None:
    parsed = read({"chosen": "Say hi: hello", "rejected": "Say hi: help"})
    assert (parsed.messages[0]["content"], parsed.messages[1]["content"]) == ("Say hi: ", "hello")
    assert parsed.rejected == [{"role": "assistant", "content": "help"}]


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
def test_everything_wrong_with_a_row_is_reported_at_its_path(
    form: FormatInfo, row: dict[str, Any], paths: list[str]
) -> None:
    with pytest.raises(InvalidRow) as caught:
        read(row, (form,))
    assert [fault.path for fault in caught.value.faults] == paths


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


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(row=st.dictionaries(st.sampled_from(KEYS), values, max_size=5), form=st.sampled_from(BUILT_IN))
def test_any_object_is_a_conversation_or_faults_at_paths(row: dict[str, Any], form: FormatInfo) -> None:
    faults: tuple[Fault, ...] = ()
    try:
        parsed = read(row, (form,))
    except InvalidRow as error:
        faults = error.faults
        parsed = Row(1, form.name, [{"role": "assistant", "content": "-"}])
    assert all(fault.path.startswith("$") and fault.message for fault in faults)
    assert all(isinstance(message["content"], str) for message in [*parsed.messages, *(parsed.rejected or [])])
    assert any(message["role"] == "assistant" for message in parsed.messages)


SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [BAD]},
        {"prompt": [{**USER, "name": None}], "chosen": [USER, GOOD], "rejected": [{"content": [{"type": "text", "text": "q"}], "role": "user"}, BAD]},
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "q", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"input": {"messages": [USER]}, "preferred_output": [USER, GOOD], "non_preferred_output": [USER, BAD]},
    ],
)  # fmt: skip
def test_answers_that_repeat_the_prompt_are_read_without_it(row: dict[str, Any]) -> None:
    parsed = read(row)
    assert (parsed.messages, parsed.rejected, parsed.prompt) == ([USER, GOOD], [BAD], 1)


def test_a_longer_prompt_is_taken_off_and_later_turns_stay() -> None:
    asked = [SYSTEM, USER, GOOD, USER]
    again = [GOOD, USER, BAD]
    parsed = read({"prompt": asked, "chosen": [*asked, *again], "rejected": [*asked, BAD]})
    assert (parsed.messages, parsed.rejected, parsed.prompt) == ([*asked, *again], [BAD], 4)


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ({"prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "$.chosen[0]"),
        ({"prompt": [USER], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "$.chosen[1]"),
        ({"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [USER, BAD]}, "$.rejected[0]"),
        ({"prompt": "other", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "$.prompt"),
    ],
)
def test_answers_that_repeat_a_part_of_the_prompt_are_refused(row: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRow) as caught:
        read(row)
    assert [fault.path for fault in caught.value.faults] == [path]


def test_sharegpt_has_one_system_message() -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}]
    assert read({"system": " s ", "conversations": turns}).messages == [SYSTEM, USER, GOOD]
    with pytest.raises(InvalidRow, match=r"\$\.system: differs from the first turn"):
        read({"system": "t", "conversations": turns})


def test_what_is_null_is_absent() -> None:
    """As a table of rows of several shapes has it: every key that any row has, null in the others."""
    nothing = dict.fromkeys(
        ("name", "tool_call_id", "tool_calls", "weight", "refusal", "audio", "function_call", "reasoning")
    )
    call = {**CALL, "index": None, "function": {**CALL["function"], "description": None}}
    rows = {
        "messages": [{**nothing, **USER}, {**nothing, "role": "assistant", "content": None, "tool_calls": [call]},
                     {**nothing, "role": "tool", "tool_call_id": "c1", "content": "2"}, {**nothing, **GOOD, "annotations": []}],
        "tools": [{"type": "function", "function": {"name": "f", "strict": None, "parameters": {
            "type": "object", "properties": {"x": {"type": "integer", "enum": None, "default": None}, "of_another": None}}}}],
    }  # fmt: skip
    columns = dict.fromkeys(
        ("prompt", "completion", "instruction", "chosen", "rejected", "conversations", "system", "zzz")
    )
    parsed = read({**columns, **rows, "parallel_tool_calls": None})
    assert parsed.messages == [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [READ_CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        GOOD,
    ]
    assert parsed.tools == [
        {"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"x": {"type": "integer", "default": None}}}}}
    ]  # fmt: skip
    assert read({"instruction": "q", "input": None, "output": "good", "history": None, "system": None}).messages == [
        USER,
        GOOD,
    ]
    turn = {"weight": None, "name": None}
    shared = read(
        {"conversations": [{**turn, "from": "human", "value": "q"}, {**turn, "from": "gpt", "value": "good"}]}
    )
    assert shared.messages == [USER, GOOD]


def test_keys_of_openais_client_are_accepted_and_what_they_would_lose_is_refused() -> None:
    message = {**GOOD, "refusal": None, "annotations": [{"type": "url_citation"}], "audio": None, "function_call": None}
    assert read({"messages": [USER, message], "metadata": {"any": "thing"}}).messages == [USER, GOOD]
    assert read({"messages": [USER, {**GOOD, "tool_calls": []}]}).messages == [USER, GOOD]
    for key in ("refusal", "audio", "function_call"):
        with pytest.raises(InvalidRow, match=rf"\$\.messages\[1\]\.{key}: is not trained"):
            read({"messages": [USER, {**GOOD, key: {"name": "f"}}]})


def test_columns_that_mean_nothing_here_are_ignored_and_misspelled_ones_are_not() -> None:
    assert read({"messages": [USER, GOOD], "score": 3, "created_at": "now"}).messages == [USER, GOOD]
    for key in ("tool", "parallel_tool_call", "system", "functions", "weight"):
        with pytest.raises(InvalidRow, match=rf"\$\.{key}: is not known here"):
            read({"messages": [USER, GOOD], key: "x"})


def test_a_question_that_a_row_has_once_more_does_not_make_it_another_format() -> None:
    """As UltraChat and rendered Alpaca have it."""
    assert read({"prompt": "q", "prompt_id": "x", "messages": [USER, GOOD]}).format == "chat"
    assert read({"prompt": "q", "instruction": "q", "output": "good"}).format == "alpaca"
    with pytest.raises(InvalidRow, match="fits chat and prompt-completion at once"):
        read({"prompt": "q", "completion": "good", "messages": [USER, GOOD]})


def test_a_row_has_a_bounded_number_of_faults_whatever_it_holds() -> None:
    many = 1500
    row: dict[str, Any]
    for row in (
        {"messages": [{}] * many},
        {"messages": [USER, GOOD, {"role": "user", "content": [{}] * many}]},
        {"messages": [USER, GOOD], "tools": [{}] * many},
        {"messages": [USER, GOOD], **{f"tools{n}": n for n in range(many)}},
        {"messages": [USER, {**GOOD, **{f"k{n}": n for n in range(many)}}]},
        {"conversations": [3] * many},
        {"instruction": "q", "output": "a", "history": [[]] * many},
    ):
        with pytest.raises(InvalidRow) as caught:
            read(row)
        assert 0 < len(caught.value.faults) < 30
    with pytest.raises(InvalidRow, match="2001 items"):
        read({"messages": [USER, GOOD] * 1000 + [USER]})
