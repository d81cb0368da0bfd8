"""Requests to the real engine: numbers at their bounds, structured output, and vectors of length 1."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.serve_process import TINY, ServeProcess, start_server
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.registry.home import Home
from tunery.registry.registry import Registry

pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT, RAW, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SHORT: dict[str, dict[str, Any]] = {
    CHAT: {"model": "tiny", "messages": MESSAGES, "max_tokens": 3},
    RAW: {"model": "tiny", "prompt": "Hi", "max_tokens": 3},
}
HUGE = (2**31, 2**31 - 1, 2**32, 2**63, 2**63 - 1, 2**64, 10**30, -1, -(2**31), -(2**63), -(10**30))
NEAR_NOTHING = (5e-324, 1e-300, 1e-45, 1e-40, 1e-38, 1e-7)
WHOLE = (
    "seed",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "top_k",
    "min_tokens",
    "prompt_logprobs",
    "top_logprobs",
    "logprobs",
)
REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("requests")
    home = Home(folder / "home")
    with Registry.open(home) as registry:
        resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins(), name="tiny")
    with start_server(folder, home, "tiny", *TINY) as running:
        yield running


@pytest.fixture
def client(server: ServeProcess) -> Iterator[httpx.Client]:
    """A client; afterwards the same engine still answers, and nothing was logged as a bug."""
    engine = server.engine
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
        assert client.post(RAW, json=SHORT[RAW]).status_code == 200
    assert server.engine == engine
    assert "Traceback" not in server.log.read_text()


def test_every_number_is_answered_or_refused_by_name(client: httpx.Client) -> None:
    bodies: list[dict[str, Any]] = [{field: value} for field in WHOLE for value in HUGE]
    bodies += [{field: value} for field in REAL for value in NEAR_NOTHING]
    bodies += [{"logit_bias": {str(key): 1}} for key in HUGE] + [{"logit_bias": {"5": value}} for value in NEAR_NOTHING]
    bodies += [{"stop_token_ids": [value]} for value in HUGE] + [{"prompt": [value]} for value in HUGE]
    for extra in bodies:
        for path in (RAW,) if "prompt" in extra else (CHAT, RAW):
            response = client.post(path, json=SHORT[path] | extra)
            assert response.status_code in (200, 400), (path, extra, response.text)
            if response.status_code == 400:
                param = response.json()["error"]["param"]
                assert param in extra or param in ("prompt", "messages", "logprobs"), (extra, response.text)
    for value in HUGE:
        body = {"model": "tiny", "input": "Hi"}
        assert client.post(EMBED, json=body | {"dimensions": value}).status_code == 400
        assert client.post(EMBED, json={"model": "tiny", "input": [value]}).status_code == 400


def test_json_has_no_padding_and_calls_end(client: httpx.Client) -> None:
    """This base says nothing sensible, so that only the grammar keeps it to a form; seeds make it
    try different ones."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    for seed in range(4):
        request = {"model": "tiny", "messages": MESSAGES, "seed": seed, "temperature": 2, "max_tokens": 150}
        formed = client.post(CHAT, json={**request, "guided_json": schema}).json()["choices"][0]
        text = formed["message"]["content"]
        assert set(json.loads(text)) == {"a"}
        assert formed["finish_reason"] == "stop"
        assert len(text) < 20
        for parallel, most in ((None, 1), (False, 1), (True, 8)):
            body = {
                **request,
                "tools": tools,
                "tool_choice": "required",
                "parallel_tool_calls": parallel,
                "max_tokens": 150,
            }
            response = client.post(CHAT, json=body)
            assert response.status_code == 200, response.text
            choice = response.json()["choices"][0]
            assert choice["finish_reason"] == "tool_calls" or (parallel and choice["finish_reason"] == "length")
            assert not choice["message"]["content"], "no half of a call"
            assert 1 <= len(choice["message"]["tool_calls"]) <= most
            for call in choice["message"]["tool_calls"]:
                assert set(json.loads(call["function"]["arguments"])) == {"a"}


def test_vectors_have_length_one(client: httpx.Client) -> None:
    def vector(**extra: Any) -> list[float]:
        response = client.post(EMBED, json={"model": "tiny", "input": "some text", **extra})
        embedding: list[float] = response.json()["data"][0]["embedding"]
        return embedding

    def length(numbers: list[float]) -> float:
        return math.sqrt(sum(number * number for number in numbers))

    whole, states = vector(), vector(normalize=False)
    assert length(whole) == pytest.approx(1)
    assert length(states) > 2
    assert [number * length(states) for number in whole] == pytest.approx(states)
    short = vector(dimensions=8)
    assert len(short) == 8
    assert length(short) == pytest.approx(1)
    assert vector(dimensions=8, normalize=False) == states[:8]


@pytest.mark.parametrize("path", [CHAT, RAW])
def test_half_a_surrogate_in_what_the_engine_compiles(client: httpx.Client, path: str) -> None:
    for extra in (
        {"guided_json": '{"const": "\\ud800"}'},
        {"guided_json": {"pattern": "\\ud800"}},
        {"guided_regex": "\\ud800"},
        {"guided_regex": "\\x{d800}"},
        {"guided_grammar": 'start: "\\ud800"'},
    ):
        assert client.post(path, json=SHORT[path] | extra).status_code in (200, 400), extra
