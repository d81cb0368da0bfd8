"""The Responses API through the real openai client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response as SdkResponse
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.gateway.api.conftest import REPLY, Served
from tunery.gateway.api.response import event_stream
from tunery.registry.errors import Unavailable

PATH = "/v1/responses"
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "look_up",
    "strict": None,
    "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
}
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"word": "a"}}\n</tool_call>'
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


async def events_of(served: Served, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream as they are sent; each has the name of its type and the next number."""
    response = await served.post(PATH, {"model": "tiny", "input": "Hi", "stream": True, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events: list[dict[str, Any]] = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        EVENTS.validate_python(event)
        events.append(event)
    return events


def lasting(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what differs every time; ids keep their ends."""
    text = json.dumps({name: value for name, value in response.items() if name not in ("created_at", "completed_at")})
    return json.loads(text.replace(response["id"].removeprefix("resp_"), "made"))  # type: ignore[no-any-return]


async def test_a_whole_response_is_as_the_client_types_it(served: Served) -> None:
    version = served.publish("acme/support")
    served.engine.cached = 3
    raw = await served.client.responses.with_raw_response.create(
        model="acme/support", input="Hi", instructions="Be brief.", metadata={"a": "b"}, user="jane", temperature=0.5
    )
    answer = raw.parse()
    SdkResponse.model_validate(json.loads(raw.text), strict=True)
    assert answer.output_text == REPLY
    assert (answer.object, answer.status, answer.model, answer.id[:5]) == (
        "response",
        "completed",
        "acme/support",
        "resp_",
    )
    (message,) = answer.output
    assert isinstance(message, ResponseOutputMessage)
    assert (message.role, message.status, message.content[0].type) == ("assistant", "completed", "output_text")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert (answer.instructions, answer.metadata, answer.user) == ("Be brief.", {"a": "b"}, "jane")
    assert (answer.temperature, answer.top_p, answer.error) == (0.5, 1.0, None)
    assert raw.headers["x-tunery-digest"] == version.digest
    assert raw.headers["x-request-id"]
    metrics = served.gateway.metrics.exposition().decode()
    assert 'tunery_http_requests_total{route="/v1/responses",status="200"} 1.0' in metrics
    assert 'tunery_requests_total{adapter="acme/support",outcome="stop"} 1.0' in metrics


async def test_a_stream_has_openais_events_in_order(served: Served) -> None:
    events = await events_of(served)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(event["delta"] for event in deltas) == REPLY
    kinds = [event["type"] for event in events if event["type"] != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    assert events[-1]["response"]["output"] == [events[-2]["item"]]


TURNS: list[tuple[str, dict[str, Any]]] = [
    (REPLY, {}),
    ("", {}),
    (REPLY, {"max_output_tokens": 2}),
    (REPLY, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
    (CALL, {"tools": [TOOL]}),
    (CALL, {"tools": [TOOL], "tool_choice": "required"}),
    (CALL, {"tools": [TOOL], "max_output_tokens": 5}),
    (f"Let me see. {CALL}\n{CALL} So.", {"tools": [TOOL], "top_logprobs": 1}),
    (f"{CALL}\n{CALL}", {"tools": [TOOL], "parallel_tool_calls": False}),
    ("<tool_call> is text", {"tools": [TOOL]}),
    ("Grüße 👋🏽 你好", {"tools": [TOOL]}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "extra"), TURNS)
async def test_a_stream_ends_with_the_whole_response(served: Served, text: str, extra: dict[str, Any]) -> None:
    """Its items are the whole response's, its deltas their texts, and chat says the same to the same tokens."""
    served.says(text)
    whole = (await served.post(PATH, {"model": "tiny", "input": "Hi", **extra})).json()
    SdkResponse.model_validate(whole, strict=True)
    events = await events_of(served, **extra)
    assert lasting(events[-1]["response"]) == lasting(whole)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    for at, item in enumerate(done):
        of_item = [event for event in events if event.get("output_index") == at]
        written = "".join(event["delta"] for event in of_item if event["type"].endswith(".delta"))
        assert written == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
        if item["type"] == "message":
            logprobs = [one for event in of_item if "delta" in event for one in event["logprobs"]]
            assert item["content"][0]["logprobs"][: len(logprobs)] == logprobs
    tools = [{"type": "function", "function": {name: TOOL[name] for name in ("name", "parameters")}}]
    chat: dict[str, Any] = {name: extra[name] for name in ("tool_choice", "parallel_tool_calls") if name in extra}
    chat |= {"max_tokens": extra.get("max_output_tokens"), **({"tools": tools} if "tools" in extra else {})}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **chat}
    message = (await served.post("/v1/chat/completions", body)).json()["choices"][0]["message"]
    said = "".join(part["text"] for item in done if item["type"] == "message" for part in item["content"])
    assert said == (message["content"] or "")
    calls = [(item["name"], item["arguments"]) for item in done if item["type"] == "function_call"]
    assert calls == [
        (call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])
    ]
    prompts = {request.prompt for request in served.engine.requests}
    assert len(prompts) == 1


async def test_a_reached_limit_is_incomplete(served: Served) -> None:
    answer = await served.client.responses.create(model="tiny", input="Hi", max_output_tokens=2)
    assert (answer.status, answer.output_text) == ("incomplete", REPLY[:2])
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 2
    events = await events_of(served, max_output_tokens=2)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-2]["item"]["status"] == "incomplete"


class Answer(BaseModel):
    word: str


async def test_the_clients_parse_and_stream_work(served: Served) -> None:
    served.says('{"word": "x"}')
    parsed = await served.client.responses.parse(model="tiny", input="Hi", text_format=Answer)
    assert parsed.output_parsed == Answer(word="x")
    constraint = served.engine.requests[-1].sampling.constraint
    assert constraint is not None
    assert json.loads(constraint.text)["properties"] == {"word": {"title": "Word", "type": "string"}}
    async with served.client.responses.stream(model="tiny", input="Hi", text_format=Answer) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert final.output_parsed == Answer(word="x")
    assert kinds[-1] == "response.completed"
    served.says(CALL)
    tools: Any = [openai.pydantic_function_tool(Answer)]
    tools = [{"type": "function", **tools[0]["function"], "name": "look_up"}]
    async with served.client.responses.stream(model="tiny", input="Hi", tools=tools) as calling:
        (call,) = (await calling.get_final_response()).output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, json.loads(call.arguments), call.status) == ("look_up", {"word": "a"}, "completed")


async def test_what_the_client_dumps_is_input_again(served: Served) -> None:
    """A loop of an agent: the output of each response goes into the next request as it is."""
    talk: list[Any] = [{"role": "user", "content": "Hi"}]
    served.says(f"Let me see. {CALL}\n{CALL}")
    for dump in ("model_dump", "to_dict"):
        answer = await served.client.responses.create(model="tiny", input=talk, tools=[TOOL])  # type: ignore[list-item]
        talk += [getattr(item, dump)() for item in answer.output]
        talk += [
            {"type": "function_call_output", "call_id": item.call_id, "output": "found"}
            for item in answer.output
            if isinstance(item, ResponseFunctionToolCall)
        ]
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    calls: Iterator[Any] = (item for item in talk if item.get("type") == "function_call")
    for _ in range(2):
        pair = [next(calls), next(calls)]
        made = [
            {"id": call["call_id"], "type": "function", "function": {"name": "look_up", "arguments": call["arguments"]}}
            for call in pair
        ]
        messages.append({"role": "assistant", "content": "Let me see.", "tool_calls": made})
        messages += [{"role": "tool", "tool_call_id": call["call_id"], "content": "found"} for call in pair]
    await served.client.responses.create(model="tiny", input=talk, tools=[TOOL])  # type: ignore[list-item]
    function = {name: TOOL[name] for name in ("name", "parameters")}
    chat = {"model": "tiny", "messages": messages, "tools": [{"type": "function", "function": function}]}
    assert (await served.post("/v1/chat/completions", chat)).status_code == 200
    assert served.engine.requests[-1].prompt == served.engine.requests[-2].prompt


async def test_an_early_failure_is_an_ordinary_error_and_a_late_one_an_event(served: Served) -> None:
    served.engine.failure = Unavailable("the engine stopped", code="engine_restarted")
    for stream in (False, True):
        response = await served.post(PATH, {"model": "tiny", "input": "Hi", "stream": stream})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_restarted")
    served.engine.failure = None
    served.engine.delay = 0.05
    stream_of = await served.client.responses.create(model="tiny", input="Hi", stream=True, store=True)
    events = []
    async for event in stream_of:
        events.append(event)
        served.engine.failure = Unavailable("the engine stopped", code="engine_restarted")
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert (last.response.error.code, last.response.error.message) == ("server_error", "the engine stopped")
    with pytest.raises(openai.NotFoundError):
        await served.client.responses.retrieve(last.response.id)


async def test_a_failure_before_the_first_token_of_a_stream_that_has_begun_is_a_whole_stream(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "FIRST_COMMENT", 0.01)
    served.engine.delay = 0.3
    asking = asyncio.create_task(served.post(PATH, {"model": "tiny", "input": "Hi", "stream": True}))
    while not served.engine.requests:
        await asyncio.sleep(0.01)
    served.engine.failure = Unavailable("the engine stopped", code="engine_restarted")
    blocks = (await asking).text.strip().split("\n\n")
    assert blocks[0] == ": queued"
    names = [block.split("\n")[0] for block in blocks if not block.startswith(":")]
    assert names == [f"event: response.{kind}" for kind in ("created", "in_progress", "failed")]


async def test_a_client_that_leaves_cancels_its_request(served: Served) -> None:
    served.engine.delay = 1
    body = {"model": "tiny", "input": "Hi", "store": True}
    for stream in (False, True):
        with pytest.raises(httpx.ReadTimeout):
            async with httpx.AsyncClient(timeout=0.2) as client:
                await client.post(served.url + PATH, json=body | {"stream": stream})
        while len(served.engine.cancelled) < 1 + stream:
            await asyncio.sleep(0.01)


async def test_the_oldest_turns_are_left_out_on_request(served: Served) -> None:
    talk = [{"role": role, "content": f"{at} " + "word " * 40} for at in range(20) for role in ("user", "assistant")]
    body = {"model": "tiny", "input": [*talk, {"role": "user", "content": "last"}], "instructions": "Be brief."}
    response = await served.post(PATH, body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "input")
    answer = (await served.post(PATH, body | {"truncation": "auto", "max_output_tokens": 100})).json()
    assert answer["truncation"] == "auto"
    prompt = served.engine.requests[-1].prompt
    text = served.gateway.renderer.decode(prompt, skip_special=False)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("last<|im_end|>\n<|im_start|>assistant\n")
    assert 1024 - 100 - 250 < len(prompt) <= 1024 - 100
    alone = {"model": "tiny", "input": "word " * 2000, "truncation": "auto"}
    assert (await served.post(PATH, alone)).json()["error"]["code"] == "context_length_exceeded"
