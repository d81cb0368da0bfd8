"""SIGKILL of the engine under load: every request in flight gets an error or an answer, and the engine recovers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.gateway.serve_process import TINY, ServeProcess, publish, random_loras, start_server
from tunery.gateway.engine.models.native.kernels import load_kernels
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.registry.home import Home
from tunery.registry.registry import Registry

pytestmark = pytest.mark.slow

REQUESTS, ADAPTERS, PINNED = 24, 6, 2
MODELS = [f"acme/a{number}" for number in range(ADAPTERS)]
HANG = 300.0
LOAD = ("--max-batch", "8", "--restart-hold-seconds", "240", "--preload", ",".join(MODELS[:PINNED]))
# Without the native kernels every step unpacks all four-bit weights anew.
QUANT = ("--quant", "nf4" if load_kernels() else "none")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("killed")
    home = Home(folder / "home")
    with Registry.open(home) as registry:
        base = resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins(), name="base")
        publish(registry, base, random_loras(folder, tiny_base_folder, ADAPTERS), name=MODELS.__getitem__)
    with start_server(folder, home, "base", *TINY, *LOAD) as running:
        yield running


@pytest.fixture
def real(tmp_path: Path, base_folder: Path, base_cache: Home) -> Iterator[ServeProcess]:
    with Registry.open(base_cache) as cache:
        known = cache.base("smollm2-135m")
    with Registry.open(Home(tmp_path / "home")) as registry:
        base = registry.add_base(msgspec.structs.replace(known, name="base"))
        publish(registry, base, random_loras(tmp_path, base_folder, ADAPTERS, size=0.5), name=MODELS.__getitem__)
    with start_server(tmp_path, Home(tmp_path / "home"), "base", *LOAD, *QUANT) as running:
        yield running


@dataclass
class Outcome:
    """How a request ended: its status, its JSON, and its events when it was a stream that had begun."""

    status: int = 0
    answer: dict[str, Any] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)


async def send_request(client: httpx.AsyncClient, path: str, body: dict[str, Any], outcome: Outcome) -> None:
    async with client.stream("POST", path, json=body) as response:
        if response.headers["content-type"].startswith("text/event-stream"):
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    outcome.events.append(line.removeprefix("data: "))
        else:
            outcome.answer = json.loads(await response.aread())
        outcome.status = response.status_code


def load(tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """Requests of every kind on every adapter, with so many tokens that none ends before the kill."""
    requests: list[tuple[str, dict[str, Any]]] = []
    for number in range(REQUESTS):
        body: dict[str, Any] = {"model": [*MODELS, "base"][number % (ADAPTERS + 1)], "max_tokens": tokens}
        body |= {"ignore_eos": True, "stream": number % 2 == 0}
        if number % 3:
            requests.append(("/v1/completions", body | {"prompt": f"{number} is a number"}))
        else:
            requests.append(("/v1/chat/completions", body | {"messages": [{"role": "user", "content": f"{number}?"}]}))
    return requests


async def answers(client: httpx.AsyncClient) -> list[str]:
    """What every adapter says to the same prompt."""
    texts = []
    for model in MODELS:
        body = {"model": model, "prompt": "the quick brown", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        response = await client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        texts.append(response.json()["choices"][0]["text"])
    return texts


async def until(condition: Any, seconds: float) -> float:
    """Wait for an asynchronous condition; how long that took."""
    started = time.monotonic()
    while not await condition():
        assert time.monotonic() - started < seconds
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def kill_under_load(server: ServeProcess, client: httpx.AsyncClient, *, tokens: int) -> None:
    """The proof."""
    before = await answers(client)
    assert len(set(before)) == ADAPTERS
    outcomes = [Outcome() for _ in range(REQUESTS)]
    running = [
        asyncio.create_task(send_request(client, path, body, outcome))
        for (path, body), outcome in zip(load(tokens), outcomes, strict=True)
    ]

    async def busy() -> bool:
        in_flight = f"tunery_requests_in_flight {REQUESTS}.0" in (await client.get("/metrics")).text
        return in_flight and sum(bool(outcome.events) for outcome in outcomes) >= 2

    async def ready(status: int) -> bool:
        return (await client.get("/health/ready")).status_code == status

    await until(busy, HANG)
    os.kill(server.engine, signal.SIGKILL)
    gone = await until(lambda: ready(503), HANG)
    back = asyncio.create_task(until(lambda: ready(200), HANG))
    await asyncio.wait_for(asyncio.gather(*running), HANG)
    print(f"ready again {gone + await back:.1f} s after the kill")
    for outcome in outcomes:
        check(outcome)
    failed = [outcome for outcome in outcomes if outcome.status == 503 or '"error"' in "".join(outcome.events)]
    assert len(failed) in range(2, REQUESTS), "what had begun, and no more"
    assert await answers(client) == before
    await until(lambda: pinned(client), HANG)


def check(outcome: Outcome) -> None:
    """It ended as a request must whose engine has died: in the envelope, or in its stream when that had begun. What had
    no token yet was answered by the next engine."""
    if outcome.status == 200 and (outcome.answer or not any('"error"' in event for event in outcome.events)):
        assert outcome.answer.get("choices") or outcome.events[-1] == "[DONE]"
    elif outcome.events:
        *_, error, done = outcome.events
        assert (outcome.status, done) == (200, "[DONE]")
        assert json.loads(error)["error"]["code"] == "engine_restarted"
        assert "error" not in json.loads(outcome.events[0])
    else:
        assert outcome.status == 503
        assert outcome.answer["error"] | {"message": ""} == {
            "message": "",
            "type": "server_error",
            "param": None,
            "code": "engine_restarted",
        }


async def pinned(client: httpx.AsyncClient) -> bool:
    """Whether the preloaded adapters are in memory and pinned, and no others are pinned."""
    cards = (await client.get("/v1/adapters")).json()["data"]
    pinned = {card["id"] for card in cards for version in card["resident"] if version["pinned"]}
    return pinned == set(MODELS[:PINNED])


@pytest.fixture
async def client(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=HANG) as client:
        yield client


async def test_every_request_in_flight_is_answered_and_the_engine_comes_back_with_its_adapters(
    tiny: ServeProcess, client: httpx.AsyncClient
) -> None:
    client.base_url = httpx.URL(tiny.url)
    await until(lambda: pinned(client), HANG)
    for times in (1, 2):
        await kill_under_load(tiny, client, tokens=400)
        assert f"tunery_engine_restarts_total {times}.0" in (await client.get("/metrics")).text


async def test_so_it_is_on_the_real_base(real: ServeProcess, client: httpx.AsyncClient) -> None:
    client.base_url = httpx.URL(real.url)
    await until(lambda: pinned(client), HANG)
    await kill_under_load(real, client, tokens=60)
