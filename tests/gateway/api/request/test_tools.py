"""Tool calling in chat, through the real openai client."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import (
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionNamedToolChoiceParam,
    ChatCompletionToolChoiceOptionParam,
)
from tokenizers import AddedToken, Tokenizer

from tests.gateway.api.conftest import REPLY, Served
from tests.narrowing import present
from tests.plugins.data.render.test_tools import MISTRAL

MESSAGES: list[Any] = [{"role": "user", "content": "Weather?"}]


def tool(name: str, parameters: dict[str, Any] | None = None) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [tool("get_weather", CITY), tool("get_time")]
WEATHER = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


def function_calls(message: ChatCompletionMessage) -> list[ChatCompletionMessageFunctionToolCall]:
    """The calls of a message that has some, each of a function."""
    calls = []
    for call in present(message.tool_calls):
        assert isinstance(call, ChatCompletionMessageFunctionToolCall)
        calls.append(call)
    return calls


async def test_a_call_is_a_message_without_text(served: Served) -> None:
    served.says(WEATHER)
    answer = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = function_calls(choice.message)
    assert (call.type, call.function.name, call.function.arguments) == ("function", "get_weather", '{"city": "Köln"}')
    assert call.id.startswith("call_")
    raw = (await served.post("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES, "tools": TOOLS})).json()
    assert set(raw["choices"][0]["message"]["tool_calls"][0]) == {"id", "type", "function"}


async def test_text_and_several_calls(served: Served) -> None:
    served.says(f"Let me see.\n{WEATHER}\n{TIME}")
    answer = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
    message = answer.choices[0].message
    assert message.content == "Let me see."
    assert [call.function.name for call in function_calls(message)] == ["get_weather", "get_time"]
    assert len({call.id for call in function_calls(message)}) == 2
    answer = await served.client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=TOOLS, parallel_tool_calls=False
    )
    assert [call.function.name for call in function_calls(answer.choices[0].message)] == ["get_weather"]


@pytest.mark.slow
@pytest.mark.parametrize("reply", [WEATHER, f"Let me see.\n{WEATHER}\n{TIME}", REPLY, "<tool_call> is a tag", "{", ""])
async def test_a_stream_adds_up_to_the_whole_answer(served: Served, reply: str) -> None:
    served.says(reply)
    request: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "n": 2}
    whole = await served.client.chat.completions.create(**request)
    async with served.client.chat.completions.stream(**request) as stream:
        events = [event async for event in stream]
        streamed = await stream.get_final_completion()
    for one, other in zip(whole.choices, streamed.choices, strict=True):
        assert one.finish_reason == other.finish_reason
        assert (one.message.content or "") == (other.message.content or "")
        ours, theirs = one.message.tool_calls or [], other.message.tool_calls or []
        assert [call.function.arguments for call in ours] == [call.function.arguments for call in theirs]
        assert [call.function.name for call in ours] == [call.function.name for call in theirs]
    assert events


async def test_the_stream_has_a_calls_name_before_its_arguments(served: Served) -> None:
    served.says(f"Hm. {WEATHER}{TIME}")
    stream = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS, stream=True)
    choices = [chunk.choices[0] async for chunk in stream]
    assert choices[0].delta.role == "assistant"
    assert all(choice.delta.role is None for choice in choices[1:])
    assert "".join(choice.delta.content or "" for choice in choices) == "Hm."
    parts = [choice.delta.tool_calls[0] for choice in choices if choice.delta.tool_calls]
    assert [part.index for part in parts] == [0, 0, 1, 1]
    assert [bool(part.id) for part in parts] == [True, False, True, False]
    assert [present(part.function).name for part in parts] == ["get_weather", None, "get_time", None]
    assert [present(part.function).arguments for part in parts] == ["", '{"city": "Köln"}', "", "{}"]
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["tool_calls"]


async def test_a_call_of_what_was_not_offered_stays_text(served: Served) -> None:
    served.says(WEATHER)
    request: dict[str, Any] = {"model": "tiny", "messages": MESSAGES}
    for more in ({"tools": [tool("get_time")]}, {"tools": TOOLS, "tool_choice": "none"}, {"tool_choice": "auto"}, {}):
        answer = await served.client.chat.completions.create(**request, **more)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (WEATHER, "stop")
        assert answer.choices[0].message.tool_calls is None


async def test_a_call_that_is_cut_off_is_text_and_says_so(served: Served) -> None:
    served.says(WEATHER)
    answer = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS, max_tokens=20)
    assert answer.choices[0].finish_reason == "length"
    assert WEATHER.startswith(present(answer.choices[0].message.content))


async def test_functions_are_offered_in_the_prompt_unless_none_may_be_called(served: Served) -> None:
    await served.client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
    await served.client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="none")
    shown, hidden = (served.gateway.renderer.decode(request.prompt) for request in served.engine.requests)
    assert "<tools>" in shown
    assert json.dumps(TOOLS[0]) in shown
    assert "get_weather" not in hidden
    assert all(request.sampling.constraint is None for request in served.engine.requests)


async def test_a_call_that_must_be_is_a_constraint(served: Served) -> None:
    named: ChatCompletionNamedToolChoiceParam = {"type": "function", "function": {"name": "get_time"}}
    choices: tuple[ChatCompletionToolChoiceOptionParam, ...] = ("required", named)
    for choice in choices:
        served.says(TIME)
        answer = await served.client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice=choice
        )
        assert answer.choices[0].finish_reason == "tool_calls"
    required, one = (request.sampling.constraint for request in served.engine.requests)
    assert required is not None
    assert one is not None
    assert required.kind == one.kind == "grammar"
    assert "get_weather" in required.text
    assert "get_weather" not in one.text
    assert "get_time" in one.text
    assert "get_weather" in served.gateway.renderer.decode(served.engine.requests[1].prompt), "all are shown even so"


async def test_a_json_answer_or_a_call(served: Served) -> None:
    request: dict[str, Any] = {
        "model": "tiny",
        "messages": MESSAGES,
        "tools": TOOLS,
        "response_format": {"type": "json_object"},
    }
    await served.client.chat.completions.create(**request)
    constraint = served.engine.requests[0].sampling.constraint
    assert constraint is not None
    assert "start: calls | instead" in constraint.text
    with pytest.raises(openai.BadRequestError, match="cannot be both a tool call and"):
        await served.client.chat.completions.create(**request, tool_choice="required")


async def test_calls_and_results_of_earlier_turns_are_in_the_prompt(served: Served) -> None:
    served.says(WEATHER)
    first = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
    message = first.choices[0].message
    talk = [
        *MESSAGES,
        message,
        {"role": "tool", "tool_call_id": present(message.tool_calls)[0].id, "content": "21 degrees"},
    ]
    served.says("It is mild.")
    answer = await served.client.chat.completions.create(model="tiny", messages=talk, tools=TOOLS)
    assert answer.choices[0].message.content == "It is mild."
    prompt = served.gateway.renderer.decode(served.engine.requests[-1].prompt)
    assert WEATHER in prompt
    assert "<tool_response>\n21 degrees\n</tool_response>" in prompt


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def asking(**changes: Any) -> list[Any]:
    return [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [{**CALL, **changes}]}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("messages", "path"),
    [
        ([{"role": "assistant", "content": None}], "messages[0].content"),
        ([{"role": "assistant", "content": "x", "tool_calls": "f"}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": ["f"]}], "messages[0].tool_calls[0]"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[0]"),
        ([{"role": "assistant", "content": "x", "function_call": {"name": "f"}}], "messages[0].function_call"),
        (asking(id=""), "messages[1].tool_calls[0].id"),
        (asking(type="custom"), "messages[1].tool_calls[0]"),
        (asking(function={"name": "f", "arguments": "{"}), "messages[1].tool_calls[0].function.arguments"),
        (asking(function={"name": "f", "arguments": "[]"}), "messages[1].tool_calls[0].function.arguments"),
        (asking(function={"name": "f", "arguments": 7}), "messages[1].tool_calls[0].function.arguments"),
        (asking(function={"name": "f g", "arguments": "{}"}), "messages[1].tool_calls[0].function.name"),
        ([*asking()[:1], {"role": "assistant", "tool_calls": [CALL, CALL]}], "messages[1].tool_calls"),
        ([*asking(), {"role": "tool", "tool_call_id": "b", "content": "x"}], "messages[2].tool_call_id"),
        ([*asking(), {"role": "tool", "tool_call_id": ["a"], "content": "x"}], "messages[2].tool_call_id"),
        ([*asking(), {"role": "tool", "tool_call_id": "a"}], "messages[2].content"),
    ],
)
async def test_a_history_that_cannot_be_names_the_place(served: Served, messages: list[Any], path: str) -> None:
    response = await served.post("/v1/chat/completions", {"model": "tiny", "messages": messages})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages")
    assert path in error["message"]
    assert served.engine.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "param", "path"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "tools[0]"),
        ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools", "tools[0]"),
        ({"tools": ["f"]}, "tools", "tools[0]"),
        ({"tools": [tool("f"), tool("f g")]}, "tools", "tools[1].function.name"),
        ({"tools": [tool("f"), tool("f")]}, "tools", "tools[1].function.name"),
        ({"tools": [tool("f", {"type": "string"})]}, "tools", "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools", "parameters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "description": 1}}]}, "tools", "description"),
        ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools", "129"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice", "sometimes"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice", "where it is an object"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_wether"}}},
            "tool_choice",
            "get_weather",
        ),
        ({"functions": [{"name": "f"}]}, "functions", "use tools"),
        ({"function_call": "auto"}, "function_call", "use tool_choice"),
    ],
)
async def test_functions_that_cannot_be_name_the_place(
    served: Served, body: dict[str, Any], param: str, path: str
) -> None:
    response = await served.post("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES, **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert path in error["message"]
    assert served.engine.requests == []


class TestMistral:
    """A base whose calls begin with a control token, which is otherwise never shown."""

    @pytest.fixture
    def tokenizer_folder(self, tiny_base_folder: Path, tmp_path: Path) -> Path:
        folder = tmp_path / "mistral"
        shutil.copytree(tiny_base_folder, folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True, normalized=False)])
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(MISTRAL)
        return folder

    async def test_its_calls_are_seen_and_written_as_it_does(self, served: Served) -> None:
        served.says('[TOOL_CALLS] [{"name": "get_time", "arguments": {}}]')
        request: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}
        answer = await served.client.chat.completions.create(**request)
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "get_time"
        constraint = served.engine.requests[0].sampling.constraint
        assert constraint is not None
        (number,) = served.gateway.renderer.control_ids(("[TOOL_CALLS]",)).values()
        assert f"calls: <[{number}]>" in constraint.text
        assert "[AVAILABLE_TOOLS]" in served.gateway.renderer.decode(served.engine.requests[0].prompt)

    async def test_without_functions_the_control_token_is_not_shown(self, served: Served) -> None:
        served.says("[TOOL_CALLS]Hello")
        answer = await served.client.chat.completions.create(model="tiny", messages=MESSAGES)
        assert answer.choices[0].message.content == "Hello"


@pytest.mark.slow
@pytest.mark.parametrize(("cut", "calls"), [(3, 0), (30, 0), (len(WEATHER) - 5, 1), (len(WEATHER) + 4, 1)])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_must_be_and_is_cut_off_is_no_text(
    served: Served, cut: int, calls: int, stream: bool
) -> None:
    reply = f"{WEATHER}\n{WEATHER}"
    served.says(reply)
    request: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}
    request["max_tokens"] = len(served.gateway.renderer.encode(reply[:cut]))
    if stream:
        chunks = [chunk async for chunk in await served.client.chat.completions.create(**request, stream=True)]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        finish = chunks[-1].choices[0].finish_reason
    else:
        choice = (await served.client.chat.completions.create(**request)).choices[0]
        text, finish = choice.message.content or "", choice.finish_reason
        assert len(choice.message.tool_calls or ()) == calls
    assert (text, finish) == ("", "length")


async def test_several_calls_must_be_asked_for_where_one_must_be(served: Served) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}
    for parallel in (None, False, True):
        served.says(TIME)
        await served.client.chat.completions.create(**options, parallel_tool_calls=parallel)  # type: ignore[arg-type]
    constraints = [request.sampling.constraint for request in served.engine.requests]
    assert ["~0.." in constraint.text for constraint in constraints if constraint] == [False, False, True]
