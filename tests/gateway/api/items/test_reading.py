"""Items of a request: whatever a client sends is refused by its place, or becomes messages that chat takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.gateway.api.items.messages import to_messages
from tunery.gateway.api.items.reading import Item, read_items, referenced
from tunery.gateway.api.request.messages import read_messages
from tunery.registry.errors import InvalidInput

JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KINDS = st.sampled_from(
    ["message", "function_call", "function_call_output", "item_reference", "reasoning", "web_search_call"]
)
PARTS = st.sampled_from(["input_text", "output_text", "refusal", "text", "input_image"])
PART = st.fixed_dictionaries({"type": PARTS | JUNK, "text": st.text(max_size=5)}, optional={"refusal": st.text()})
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "type": KINDS | JUNK,
    "role": st.sampled_from(["user", "system", "developer", "assistant", "tool"]) | JUNK,
    "content": st.text(max_size=5) | st.lists(PART | JUNK, max_size=3) | JUNK,
    "call_id": st.sampled_from(["c1", "c2"]) | JUNK,
    "name": st.sampled_from(["look_up", "a b"]) | JUNK,
    "arguments": st.sampled_from(["{}", '{"a": 1}', "", "[]", "{"]) | JUNK,
    "output": st.text(max_size=5) | st.lists(PART | JUNK, max_size=3) | JUNK,
    "id": st.sampled_from(["msg_1", "msg_2"]) | JUNK,
    "status": st.just("completed"),
}


def good(kind: str, *names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Items of a kind with its fields, of which some are wrong."""
    return st.fixed_dictionaries({"type": st.just(kind), **{name: FIELDS[name] for name in names}})


ITEMS = st.lists(
    good("message", "role", "content")
    | good("function_call", "call_id", "name", "arguments")
    | good("function_call_output", "call_id", "output")
    | good("item_reference", "id")
    | st.fixed_dictionaries({}, optional=FIELDS)
    | JUNK,
    max_size=6,
)
FOUND = {
    "msg_1": {
        "id": "msg_1",
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": "x"}],
    }
}


def read(raw: list[Any], earlier: list[Item]) -> list[Item] | InvalidInput:
    try:
        return read_items(raw, earlier=earlier, found=FOUND)
    except InvalidInput as error:
        return error


@given(ITEMS, st.lists(good("function_call", "call_id", "name", "arguments"), max_size=2))
def test_items_are_refused_by_their_place_or_are_messages_that_chat_takes(raw: list[Any], calls: list[Any]) -> None:
    referenced(raw)
    before = read(calls, [])
    earlier = [] if isinstance(before, InvalidInput) else before
    items = read(raw, earlier)
    if isinstance(items, InvalidInput):
        assert items.param == "input"
        assert items.message.startswith("input[")
        assert len(items.message) < 600
        return
    json.dumps(items)
    messages = to_messages([*earlier, *items], instructions="Be kind.")
    assert len(read_messages(messages)) == len(messages)
    assert read_items(items, earlier=earlier) == items


CALL = {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "x"}


def test_a_turn_of_the_assistant_is_one_message() -> None:
    said = {"type": "message", "role": "assistant", "content": "Let me see. "}
    second = {**CALL, "call_id": "c2"}
    more = [{**OUTPUT, "call_id": "c2"}, {"role": "assistant", "content": "So."}, {"role": "assistant", "content": "!"}]
    items = read_items(
        [said, CALL, {"type": "reasoning", "summary": []}, second, {**said, "content": "Soon."}, OUTPUT, *more]
    )
    messages = to_messages(items)
    assert [message["role"] for message in messages] == ["assistant", "tool", "tool", "assistant", "assistant"]
    assert messages[0]["content"] == "Let me see. Soon."
    assert [call["id"] for call in messages[0]["tool_calls"]] == ["c1", "c2"]


@pytest.mark.parametrize(
    ("item", "code", "fragment"),
    [
        ({"type": "web_search_call", "id": "x"}, "unsupported_item", "input[0] is of type 'web_search_call'"),
        ({"role": "tool", "content": "x"}, "invalid_input", "input[0].role is 'tool'"),
        ({"role": "user"}, "invalid_input", "input[0].content is missing"),
        ({"role": "user", "content": "x", "name": "ann"}, "unsupported_parameter", "input[0].name is not supported"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "unsupported_parameter", "input[0].content[0] is of type 'input_image'"),
        ({**CALL, "arguments": "[1]"}, "invalid_input", "input[0].arguments must be"),
        ({**CALL, "name": "a b"}, "invalid_input", "input[0].name is 'a b'"),
        ({**CALL, "call_id": None}, "invalid_input", "input[0].call_id is missing"),
        (OUTPUT, "invalid_input", "No tool call found for function call output with call_id c1"),
        ("x", "unsupported_item", "input[0] is of type 'None'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(item: Any, code: str, fragment: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_items([item])
    assert (raised.value.code, raised.value.param) == (code, "input")
    assert fragment in raised.value.message


def test_calls_that_wait_for_their_outputs_have_different_ids() -> None:
    with pytest.raises(InvalidInput, match=r"input\[1\].call_id is that of another call"):
        read_items([CALL, CALL])
    assert len(read_items([CALL, OUTPUT, CALL, OUTPUT])) == 4
