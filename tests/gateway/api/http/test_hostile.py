"""Hostile requests: each is refused with an error envelope, and the next request is answered."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.api.conftest import REPLY, Served
from tunery.gateway.api.http import body_memory as memory
from tunery.gateway.api.http import middleware
from tunery.gateway.app import MAX_BODY

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


def asked(path: str) -> dict[str, object]:
    """What is asked on either endpoint."""
    return {"messages": MESSAGES} if "chat" in path else {"prompt": "x"}


CHAT, RAW = "/v1/chat/completions", "/v1/completions"
HUGE = 10**30


async def post(served: Served, path: str, body: bytes, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.post(
            served.url + path, content=body, headers={"content-type": "application/json", **headers}, timeout=20
        )


async def refused(served: Served, path: str, body: bytes, status: int = 400) -> str:
    """The error's message; and the gateway still works."""
    response = await post(served, path, body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    answer = await served.client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert answer.choices[0].message.content == REPLY
    return str(error["message"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        {"top_k": HUGE},
        {"max_tokens": HUGE},
        {"min_tokens": HUGE},
        {"n": HUGE},
        {"stop_token_ids": [HUGE]},
        {"stop_token_ids": [2**30]},
        {"logit_bias": {"9" * 5000: 1}},
        {"logit_bias": {"-1": 1}},
        {"logit_bias": {"٣": 1}},
        {"temperature": 1e308},
        {"temperature": True},
        {"seed": "x"},
        {"stop": [1]},
        {"stream": "maybe"},
        {"adapter": 7},
    ],
)
@pytest.mark.parametrize("path", [CHAT, RAW])
async def test_values_out_of_this_world(served: Served, path: str, extra: dict[str, object]) -> None:
    body = {"model": "tiny", **asked(path), **extra}
    message = await refused(served, path, json.dumps(body).encode())
    assert len(message) < 500


@pytest.mark.slow
@pytest.mark.parametrize("seed", [-5, 0, 2**63, HUGE])
async def test_any_whole_number_is_a_seed(served: Served, seed: int) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "seed": seed}
    assert (await post(served, CHAT, json.dumps(body).encode())).status_code == 200
    chosen = served.engine.requests[-1].sampling.seed
    assert chosen is not None
    assert 0 <= chosen < 2**63


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"tiny","messages":' + b"[" * 100_000,
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"tools":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
        b'{"model":"tiny","messages":[{"role":["user"],"content":"x"}]}',
        b'{"model":"tiny","messages":[{"role":"user","content":{"x":1}}]}',
        b'{"model":"tiny","messages":[null]}',
        b'{"model":"tiny","messages":[{"role":"user","content":[null]}]}',
        b"\x00" * 100,
    ],
)
async def test_bodies_that_attack_the_parser(served: Served, body: bytes) -> None:
    await refused(served, CHAT, body)


async def test_a_model_name_a_megabyte_long_is_not_found_briefly(served: Served) -> None:
    body = {"model": "x" * 2**20, "messages": MESSAGES}
    assert len(await refused(served, CHAT, json.dumps(body).encode(), 404)) < 500


async def test_a_body_over_the_limit_is_413(served: Served) -> None:
    body = b'{"model":"tiny","messages":[{"role":"user","content":"' + b"x" * MAX_BODY + b'"}]}'
    assert "too large" in await refused(served, CHAT, body, 413)


async def test_a_body_that_is_announced_too_long_is_not_waited_for(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "MAX_DISCARD_SECONDS", 1e6)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
    for path, kind in ((CHAT, "application/json"), ("/v1/files", "multipart/form-data; boundary=b")):
        writer.write(
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: 99999999999\r\n\r\n".encode()
        )
        answer = await reader.read()  # to the end of the connection
        writer.close()
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"too large" in answer
        reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
    writer.close()


@pytest.mark.slow
@pytest.mark.parametrize("given", ["x" * 129, "with space", "ümlaut"])
async def test_a_request_id_unfit_for_a_log_is_replaced(served: Served, given: str) -> None:
    async with httpx.AsyncClient() as client:
        headers = {"x-request-id": given.encode()}
        response = await client.get(f"{served.url}/health/live", headers=headers)  # type: ignore[arg-type]
        assert len(response.headers["x-request-id"]) == 32
        kept = await client.get(f"{served.url}/health/live", headers={"x-request-id": "mine-1"})
        assert kept.headers["x-request-id"] == "mine-1"


async def test_a_client_that_leaves_before_the_first_token_of_its_stream_cancels(served: Served) -> None:
    served.engine.delay = 30
    asking = asyncio.create_task(served.client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True))
    while not served.engine.requests:
        await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    for _ in range(100):
        if served.engine.cancelled:
            break
        await asyncio.sleep(0.02)
    assert served.engine.cancelled == [served.engine.requests[0].id]
    assert served.gateway.in_flight == 0


async def test_more_answers_than_can_ever_wait_is_a_mistake_and_not_a_queue(served: Served) -> None:
    body = {"model": "tiny", "prompt": ["x"] * 60, "n": 16}
    assert "960 answers" in await refused(served, RAW, json.dumps(body).encode())


async def test_bodies_have_bounds_by_route_and_in_all(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    padded = b'{"adapter": "acme/support", "x": "' + b"x" * 70_000 + b'"}'
    assert (await post(served, "/v1/adapters/load", padded)).status_code == 413
    monkeypatch.setattr(memory, "MAX_BODIES", 50_000)
    for _ in range(2):
        response = await post(
            served, CHAT, json.dumps({"model": "tiny", "messages": MESSAGES, "user": "x" * 60_000}).encode()
        )
        assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")
        half = json.dumps({"model": "tiny", "messages": MESSAGES, "user": "x" * 30_000}).encode()
        assert (await post(served, CHAT, half)).status_code == 200, "what has ended does not count"
