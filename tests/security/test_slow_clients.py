"""512 clients that send slowly, send nothing or do not read: another one is answered meanwhile, as fast as without
them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.api.conftest import Served
from tests.gateway.serve_process import TINY, ServeProcess, start_server
from tests.security.raw_http import request
from tunery.registry.home import Home
from tunery.registry.keys.api_key import SCOPES

SLOW = 512
CHAT = "/v1/chat/completions"
JSON = "content-type: application/json"


@contextlib.asynccontextmanager
async def slow_clients(url: str, count: int, *, key: str = "") -> AsyncIterator[list[socket.socket]]:
    """Connections that stay: a third sends half a head, a third half a body, a third nothing."""
    loop, port = asyncio.get_running_loop(), int(url.rpartition(":")[2])
    begun = (
        b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-a: ",
        request("POST", CHAT, JSON, f"authorization: Bearer {key}", "content-length: 1000") + b'{"model":',
        b"",
    )
    connections = []
    try:
        for number in range(count):
            connection = socket.socket()
            connection.setblocking(False)
            connections.append(connection)
            await loop.sock_connect(connection, ("127.0.0.1", port))
            await loop.sock_sendall(connection, begun[number % len(begun)])
        yield connections
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.slow
async def test_slow_clients_keep_nobody_waiting(served: Served) -> None:
    _, token = served.gateway.registry.keys.create(tenant="acme", scopes=SCOPES, actor="test")
    headers = {"authorization": f"Bearer {token}"}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    async with (
        slow_clients(served.url, SLOW, key=token),
        httpx.AsyncClient(base_url=served.url, headers=headers, verify=False, timeout=60) as client,
    ):
        for _ in range(5):
            answer = await client.post(CHAT, json=body)
            assert answer.status_code == 200, answer.text
        assert served.gateway.in_flight == 0, "what has not been asked yet takes no place among the requests"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("slow-clients")
    base = folder / "base"
    base.symlink_to(tiny_base_folder)
    with start_server(folder, Home(folder / "home"), base, *TINY, "--read-seconds", "10") as running:
        yield running


async def first_tokens(url: str, count: int) -> list[float]:
    """Seconds to the first token of that many requests, one after another."""
    body = {"model": "base", "prompt": "hi", "max_tokens": 4, "stream": True}
    seconds = []
    async with httpx.AsyncClient(base_url=url, verify=False, timeout=60) as client:
        for _ in range(count):
            started = time.perf_counter()
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                async for _line in answer.aiter_lines():
                    seconds.append(time.perf_counter() - started)
                    break
    return sorted(seconds)


async def trickle(connections: list[socket.socket]) -> None:
    """Send a byte now and then on every connection that is still open."""
    while True:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.send(b" ")
        await asyncio.sleep(0.5)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_first_tokens_come_as_fast_beside_slow_clients(serving: ServeProcess) -> None:
    rounds, count = 5, 200
    alone: list[float] = []
    beside: list[float] = []
    await first_tokens(serving.url, count)
    for _ in range(rounds):
        alone += await first_tokens(serving.url, count)
        async with slow_clients(serving.url, SLOW) as connections:
            trickling = asyncio.create_task(trickle(connections))
            beside += await first_tokens(serving.url, count)
            trickling.cancel()
            await asyncio.gather(trickling, return_exceptions=True)
    p99 = [sorted(seconds)[int(0.99 * len(seconds))] for seconds in (alone, beside)]
    assert p99[1] <= 2 * p99[0], p99


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_first_tokens_come_as_fast_beside_large_bodies(serving: ServeProcess) -> None:
    """Bodies at their largest, one after another: each may hold everybody up for as long as it is read, and no longer."""
    bodies: list[bytes] = [
        json.dumps({"model": "base", "prompt": "x" * 15_000_000}).encode(),
        b'{"model":"base","prompt":[' + b"[]," * 5_000_000 + b"[]]}",
    ]

    async def attack() -> None:
        headers: dict[str, Any] = {"content-type": "application/json"}
        async with httpx.AsyncClient(base_url=serving.url, headers=headers, verify=False, timeout=60) as client:
            while True:
                for body in bodies:
                    assert (await client.post("/v1/completions", content=body)).status_code == 400

    attacking = asyncio.create_task(attack())
    await asyncio.sleep(0.5)
    beside = await first_tokens(serving.url, 100)
    assert not attacking.done()
    attacking.cancel()
    await asyncio.gather(attacking, return_exceptions=True)
    assert beside[-1] < 2.0
