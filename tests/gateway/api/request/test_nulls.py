"""A null means an absent field, for each optional field of each request and of the messages that clients send."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from msgspec.inspect import StructType, UnionType, type_info
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.gateway.api.conftest import REPLY, Served
from tunery.gateway.api.schemas.items import ResponseRequest
from tunery.gateway.api.schemas.models import LoadRequest
from tunery.gateway.api.schemas.requests import ChatRequest, CompletionRequest, EmbeddingRequest

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "function": {"name": "look_up", "arguments": "{}"}}
HISTORY = [
    *MESSAGES,
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "x"},
    *MESSAGES,
]
VARYING = ("id", "created", "created_at", "completed_at")
SCHEMA = {"type": "object", "properties": {}}
CHAT, RAW, EMBED, LOAD = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/adapters/load"
RESPOND = "/v1/responses"
REQUESTS: dict[str, tuple[Any, dict[str, Any]]] = {
    CHAT: (ChatRequest, {"model": "tiny", "messages": MESSAGES}),
    RAW: (CompletionRequest, {"model": "tiny", "prompt": "Hi"}),
    EMBED: (EmbeddingRequest, {"model": "tiny", "input": "Hi"}),
    LOAD: (LoadRequest, {"adapter": "acme/docs"}),
    RESPOND: (ResponseRequest, {"model": "tiny", "input": "Hi"}),
}


def optional(kind: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every field that may be left out, of nested types too."""
    for field in kind.fields:
        if not field.required:
            yield (*path, field.encode_name)
        kinds = field.type.types if isinstance(field.type, UnionType) else (field.type,)
        for nested in kinds:
            if isinstance(nested, StructType):
                yield from optional(nested, (*path, field.encode_name))


async def answer(served: Served, path: str, body: dict[str, Any]) -> tuple[int, Any, Any]:
    """The status, what the engine was asked, and the answer, without what differs every time."""
    served.engine.requests.clear()
    served.engine.embeds.clear()
    async with httpx.AsyncClient(verify=False) as client:
        response = await client.post(served.url + path, json=body)
    asked = [msgspec.structs.replace(one, id="") for one in [*served.engine.requests, *served.engine.embeds]]
    if response.headers["content-type"].startswith("text/event-stream"):
        return response.status_code, asked, response.text.count("data: ")
    content = response.json()
    # Items of a response have its id in their own.
    text = json.dumps({key: value for key, value in content.items() if key not in VARYING})
    return response.status_code, asked, json.loads(re.sub("[0-9a-f]{32}", "made", text))


@pytest.mark.slow
@pytest.mark.parametrize("path", REQUESTS)
async def test_every_optional_field_may_be_null(served: Served, path: str) -> None:
    served.publish("acme/docs")
    kind, good = REQUESTS[path]
    fields = list(optional(type_info(kind)))
    assert len(fields) > len(good) - 2
    for field in fields:
        outer: dict[str, Any] = {}
        inner = outer
        for name in field[:-1]:
            inner[name] = inner = {}
        # Options of a stream need a stream.
        without = {
            **good,
            **({"stream": True} if field[0] == "stream_options" else {}),
            **json.loads(json.dumps(outer)),
        }
        inner[field[-1]] = None
        with_null = {**without, **outer}
        expected = await answer(served, path, without)
        assert expected[0] == 200, (field, expected)
        assert await answer(served, path, with_null) == expected, field


Nested = list[tuple[dict[str, Any], list[tuple[str | int, ...]]]]
NESTED: Nested = [
    ({"response_format": {}}, [("response_format", "type")]),
    ({"response_format": {"type": "json_object"}}, [("response_format", "json_schema")]),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        [("response_format", "json_schema", key) for key in ("name", "strict", "description")],
    ),
    (
        {"structured_outputs": {"regex": "a"}},
        [
            ("structured_outputs", key)
            for key in ("json", "choice", "grammar", "json_object", "structural_tag", "whitespace_pattern", "backend")
        ],
    ),
    (
        {"tools": [TOOL], "messages": HISTORY},
        [
            *(("tools", 0, "function", key) for key in ("description", "strict")),
            *(("messages", 1, key) for key in ("content", "name", "refusal", "audio", "annotations", "function_call")),
            *(("messages", 1, "tool_calls", 0, key) for key in ("type", "index")),
            *(("messages", at, key) for at in (0, 2) for key in ("name", "tool_calls", "function_call")),
            ("messages", 0, "tool_call_id"),
        ],
    ),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, [("tools", 0, "function", "parameters")]),
]


FLAT_TOOL = {"type": "function", "name": "look_up", "parameters": SCHEMA}
ITEMS = [
    *MESSAGES,
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Well."}]},
    {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "x"},
]
NESTED_ITEMS: Nested = [
    (
        {"tools": [FLAT_TOOL], "input": ITEMS},
        [
            *(("tools", 0, key) for key in ("description", "strict", "async", "defer_loading")),
            *(("input", 0, key) for key in ("type", "id", "status", "phase", "name")),
            *(("input", 1, key) for key in ("id", "status", "phase")),
            *(("input", 1, "content", 0, key) for key in ("annotations", "logprobs")),
            *(("input", 2, key) for key in ("id", "status", "caller", "namespace", "async")),
            *(("input", 3, key) for key in ("id", "status", "caller", "name", "namespace")),
        ],
    ),
    ({"text": {"format": {"type": "json_object"}}}, [("text", "verbosity"), ("text", "format", "schema")]),
    ({"text": {"format": {}}}, [("text", "format", "type"), ("text", "format")]),
    (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
        [("text", "format", key) for key in ("strict", "description")],
    ),
    ({"reasoning": {}}, [("reasoning", key) for key in ("effort", "summary", "generate_summary", "context")]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "good", "nested"),
    [(CHAT, {"messages": MESSAGES}, NESTED), (RESPOND, {"input": MESSAGES}, NESTED_ITEMS)],
)
async def test_fields_of_dictionaries_may_be_null(
    served: Served, path: str, good: dict[str, Any], nested: Nested
) -> None:
    for extra, paths in nested:
        without = {"model": "tiny", **good, **extra}
        expected = await answer(served, path, without)
        assert expected[0] == 200, (extra, expected)
        for place in paths:
            body = json.loads(json.dumps(without))
            inner = body
            for key in place[:-1]:
                inner = inner[key]
            assert isinstance(inner, dict)
            inner.pop(place[-1], None)
            inner[place[-1]] = None
            assert await answer(served, path, body) == expected, place


class Answer(BaseModel):
    text: str


def tool_answer(call: str) -> ChatCompletionMessageParam:
    return {"role": "tool", "tool_call_id": call, "content": "found"}


async def test_what_the_openai_client_dumps_is_a_message_again(served: Served) -> None:
    completions, chat = served.client.chat.completions, [*MESSAGES]
    dumped: Any
    call = '<tool_call>{"name": "look_up", "arguments": {"x": 1}}</tool_call>'
    for text, options in ((REPLY, {}), (call, {"tools": [TOOL]}), (f"Let me see. {call}", {"tools": [TOOL]})):
        served.says(text)
        response = await completions.create(model="tiny", messages=chat, **options)  # type: ignore[call-overload]
        message = response.choices[0].message
        for dumped in (message.model_dump(), message.to_dict(), json.loads(message.model_dump_json())):
            answers = [tool_answer(one.id) for one in message.tool_calls or ()]
            again = await completions.create(model="tiny", messages=[*chat, dumped, *answers, *MESSAGES])
            assert again.choices[0].finish_reason in ("stop", "tool_calls")
    served.says('{"text": "x"}')
    parsed = await completions.parse(model="tiny", messages=chat, response_format=Answer)
    with warnings.catch_warnings(action="ignore"):  # of pydantic, for what the client itself put there
        dumped = parsed.choices[0].message.model_dump()
    assert "parsed" in dumped
    await completions.create(model="tiny", messages=[*chat, dumped, *MESSAGES])
    async with completions.stream(model="tiny", messages=chat) as stream:
        final = await stream.get_final_completion()
    dumped = final.choices[0].message.model_dump()
    await completions.create(model="tiny", messages=[*chat, dumped, *MESSAGES])


async def test_keys_of_a_clients_assistant_messages_change_nothing(served: Served) -> None:
    reply = {"role": "assistant", "content": "Yes."}
    expected = await answer(served, CHAT, {"model": "tiny", "messages": [*MESSAGES, reply, *MESSAGES]})
    extra: dict[str, Any]
    for extra in (
        {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None},
        {"annotations": [{"type": "url_citation"}], "tool_calls": []},
    ):
        assert (
            await answer(served, CHAT, {"model": "tiny", "messages": [*MESSAGES, reply | extra, *MESSAGES]}) == expected
        )
    refused = {"role": "assistant", "content": None, "refusal": "Yes."}
    assert await answer(served, CHAT, {"model": "tiny", "messages": [*MESSAGES, refused, *MESSAGES]}) == expected
