"""Chat completions through the real openai client."""

from __future__ import annotations

import asyncio
import re

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.api.conftest import REPLY, Served
from tests.narrowing import present
from tunery.gateway.api.response import event_stream
from tunery.gateway.engine.messages import Generate
from tunery.registry.errors import Unavailable

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


async def test_a_whole_answer_names_what_answered(served: Served) -> None:
    version = served.publish("acme/support")
    raw = await served.client.chat.completions.with_raw_response.create(model="acme/support", messages=MESSAGES)
    answer = raw.parse()
    assert answer.choices[0].message.content == REPLY
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "acme/support"
    usage = present(answer.usage)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert version.digest[:10] in present(answer.system_fingerprint)
    assert raw.headers["x-tunery-version"] == "1"
    assert raw.headers["x-tunery-adapter"] == "acme/support"
    assert raw.headers["x-tunery-digest"] == version.digest
    assert raw.headers["x-tunery-base"].startswith("tiny@")
    assert raw.headers["x-request-id"]


async def test_the_engine_gets_the_rendered_prompt_the_adapter_and_the_sampling(served: Served) -> None:
    version = served.publish("acme/support")
    await served.client.chat.completions.create(
        model="acme/support@1",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        ],
        temperature=0.5,
        top_p=0.9,
        seed=7,
        max_completion_tokens=50,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": 10},
        extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2, "ignore_eos": True},
    )
    (request,) = served.engine.requests
    rendered = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert list(request.prompt) == served.gateway.renderer.prompt_ids(rendered)
    (part,) = request.composition
    assert (part.source.digest, part.source.number, part.weight) == (version.digest, 1, 1.0)
    assert set(part.source.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert request.tenant == "acme"
    chosen = request.sampling
    assert (chosen.temperature, chosen.top_p, chosen.top_k, chosen.min_p) == (0.5, 0.9, 3, 0.1)
    assert (chosen.seed, chosen.max_tokens, chosen.ignore_eos) == (7, 50, True)
    assert (chosen.presence_penalty, chosen.frequency_penalty, chosen.repetition_penalty) == (1.0, -1.0, 1.2)
    assert chosen.logit_bias == {5: 10.0}


async def test_a_stream_is_the_same_text_in_pieces(served: Served) -> None:
    stream = await served.client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == REPLY
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(served.gateway.renderer.encode(REPLY)) + 1
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_stream_on_the_wire_ends_with_done(served: Served) -> None:
    async with httpx.AsyncClient() as client:
        body = {"model": "tiny", "messages": MESSAGES, "stream": True}
        response = await client.post(f"{served.url}/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert all(event.startswith("data: ") for event in events if event)
    assert events[-2:] == ["data: [DONE]", ""]


async def test_characters_of_several_tokens_arrive_whole(served: Served) -> None:
    reply = "Grüße 👋🏽 你好"
    served.engine.reply = served.gateway.renderer.encode(reply)
    stream = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == reply
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "left"), [("wor", "Hello, "), (["zzz", "lo"], "Hel"), (["Hello, world"], ""), (["H"], "")]
)
async def test_stop_strings_end_the_answer_and_are_not_shown(served: Served, stop: str | list[str], left: str) -> None:
    answer = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, stop=stop)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (left, "stop")
    stream = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, stop=stop, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == left


async def test_a_reached_token_limit_is_the_finish_reason(served: Served) -> None:
    answer = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert present(answer.usage).completion_tokens == 2


async def test_several_choices(served: Served) -> None:
    answer = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, n=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {REPLY}
    assert sorted(present(request.sampling.seed) for request in served.engine.requests) == [1, 2, 3]
    stream = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, n=2, stream=True)
    texts = {0: "", 1: ""}
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: REPLY, 1: REPLY}


async def test_logprobs_have_openais_shape(served: Served) -> None:
    answer = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2)
    content = present(present(answer.choices[0].logprobs).content)
    assert "".join(entry.token for entry in content) == REPLY
    assert all(entry.logprob == -0.5 and len(entry.top_logprobs) == 2 for entry in content)
    assert bytes(present(content[0].bytes)).decode() == content[0].token


async def test_a_tokens_bytes_are_exact_even_where_it_is_part_of_a_character(served: Served) -> None:
    reply = "Grüße 👋🏽"
    served.engine.reply = served.gateway.renderer.encode(reply)
    answer = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True)
    content = present(present(answer.choices[0].logprobs).content)
    assert any("\ufffd" in entry.token for entry in content)
    assert b"".join(bytes(present(entry.bytes)) for entry in content).decode() == reply


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["acme/unknown", "nope", "acme/support@9", "acme/support@canary", "gpt-4o", "../../etc/passwd", ""]
)
async def test_an_unknown_model_is_never_answered_by_the_base(served: Served, name: str) -> None:
    served.publish("acme/support")
    with pytest.raises(openai.NotFoundError) as caught:
        await served.client.chat.completions.create(model=name, messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert served.engine.requests == []


async def test_the_adapter_may_be_a_field_or_a_header(served: Served) -> None:
    served.publish("acme/support")
    await served.client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body={"adapter": "acme/support"})
    await served.client.chat.completions.create(
        model="tiny", messages=MESSAGES, extra_headers={"X-Tunery-Adapter": "acme/support@1"}
    )
    assert [[part.source.name for part in request.composition] for request in served.engine.requests] == [
        ["acme/support"]
    ] * 2
    with pytest.raises(openai.BadRequestError, match="disagree"):
        await served.client.chat.completions.create(
            model="acme/support", messages=MESSAGES, extra_body={"adapter": "acme/other"}
        )
    with pytest.raises(openai.NotFoundError):
        await served.client.chat.completions.create(
            model="tiny", messages=MESSAGES, extra_body={"adapter": "acme/other"}
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 99}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"model": None}, "model"),
    ],
)
async def test_what_cannot_be_is_400_and_names_the_field(served: Served, body: dict[str, object], param: str) -> None:
    async with httpx.AsyncClient() as client:
        response = await client.post(
            f"{served.url}/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES, **body}
        )
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert served.engine.requests == []


async def test_the_context_length_is_kept(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "word " * 2000}]
        )
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1020)
    assert caught.value.code == "context_length_exceeded"


async def test_clients_know_a_prompt_that_is_too_long_by_openais_words(served: Served) -> None:
    """LiteLLM and LangChain look for the first of these in the message, and some read the numbers."""
    words = r"This model's maximum context length is (\d+) tokens\. However, you requested (\d+) tokens \((\d+) in the \w+, (\d+) in the completion\)"
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 2000}], "max_tokens": 7}),
        ("/v1/completions", {"prompt": "word " * 2000}),
        ("/v1/embeddings", {"input": "word " * 2000}),
    ):
        error = (await served.post(path, {"model": "tiny", **body})).json()["error"]
        match = re.search(words, error["message"])
        assert match is not None, error
        limit, asked, prompt, output = map(int, match.groups())
        assert (limit, asked, output) == (1024, prompt + output, 7 if "messages" in body else 0)
        assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)]
)
async def test_wrong_paths_and_methods_are_in_the_envelope(served: Served, method: str, path: str, status: int) -> None:
    async with httpx.AsyncClient() as client:
        response = await client.request(method, served.url + path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.slow
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": "tiny"}'])
async def test_bodies_that_are_no_request(served: Served, body: bytes) -> None:
    async with httpx.AsyncClient() as client:
        response = await client.post(
            f"{served.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
    assert response.status_code == 400
    assert response.json()["error"]["message"]


async def test_a_bug_is_500_and_says_nothing_of_itself(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: Generate) -> list[int]:
        raise RuntimeError("secret detail")

    served.engine.reply = broken
    with pytest.raises(openai.InternalServerError) as caught:
        await served.client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert "secret" not in str(caught.value)
    assert "secret detail" in caplog.text


async def test_a_dead_engine_is_503_and_the_gateway_not_ready(served: Served) -> None:
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{served.url}/health/ready")).status_code == 200
        served.engine.die()
        assert (await client.get(f"{served.url}/health/ready")).status_code == 503
        assert (await client.get(f"{served.url}/health/live")).status_code == 200
    with pytest.raises(openai.InternalServerError) as caught:
        await served.client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert caught.value.status_code == 503
    assert caught.value.code == "engine_starting"
    assert caught.value.response.headers["retry-after"] == "7", "what the engine says of its outage"


@pytest.mark.slow
async def test_a_stream_that_is_long_in_coming_sends_comments(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "FIRST_COMMENT", 0.01)
    monkeypatch.setattr(event_stream, "COMMENT_EVERY", 0.01)
    served.engine.delay = 0.2
    body = {"model": "tiny", "messages": MESSAGES, "stream": True, "max_tokens": 2}
    response = await served.post("/v1/chat/completions", body)
    assert response.status_code == 200
    first, second, *_ = response.text.split("\n\n")
    assert (first, second) == (": queued", ": queued")
    stream = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, max_tokens=2)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == REPLY[:2]


async def test_an_engine_that_dies_mid_stream_ends_the_stream_with_an_error(served: Served) -> None:
    served.engine.delay = 0.05
    stream = await served.client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    await anext(stream.__aiter__())
    served.engine.failure = Unavailable("the engine stopped", code="engine_restarted")
    with pytest.raises(openai.APIError, match="the engine stopped"):
        [chunk async for chunk in stream]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_its_request(served: Served, stream: bool) -> None:
    served.engine.delay = 0.05
    served.engine.reply = [5] * 400

    async def send_request() -> None:
        answer = await served.client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=stream, max_tokens=400
        )
        if stream:
            assert isinstance(answer, openai.AsyncStream)
            [chunk async for chunk in answer]

    asking = asyncio.create_task(send_request())
    while not served.engine.requests:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    for _ in range(100):
        if served.engine.cancelled:
            break
        await asyncio.sleep(0.02)
    assert served.engine.cancelled == [served.engine.requests[0].id]
    assert served.gateway.in_flight == 0
