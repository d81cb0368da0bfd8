"""Many at once: a thousand streams, half as many requests again as there is room for, and a tenant that floods another.

`make soak`. What is compared is measured in the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import msgspec
import pytest

from tests.gateway.fake_server import fake_server
from tests.gateway.serve_process import publish, random_loras, start_server
from tests.registry.artifacts import make_base
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.home import Home
from tunery.registry.registry import Registry

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

STREAMS, SECONDS = 1000, 60
STREAM_DELAY = 0.5
"""Seconds between the tokens of one stream: two a second, as fast as a person reads."""
PLACES, TOKENS, DELAY = 32, 10, 0.05
"""Requests that run at once, and what each takes: PLACES / (TOKENS * DELAY) a second are as many as there is room for."""
FLOOD, ASKED = 200, 30


@dataclass
class Answer:
    """The status, seconds to each event, and the last lines of an answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    end: str = ""
    seconds: float = 0.0


async def ask(port: int, body: dict[str, Any], *, key: str = "") -> Answer:
    """A request on a connection of its own, read as it comes."""
    answer, began = Answer(), time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nconnection: close\r\n"
        f"{f'authorization: Bearer {key}' if key else 'x-none: 1'}\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    with contextlib.closing(writer):
        writer.write(head.encode() + content)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        answer.status = int(lines[0].split()[1])
        answer.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        while line := await reader.readline():
            if line.startswith(b"data: "):
                answer.times.append(time.perf_counter() - began)
                answer.end = line.decode().strip()
    answer.seconds = time.perf_counter() - began
    return answer


@asynccontextmanager
async def fake(
    registry: Registry, tmp_path: Path, tiny_base_folder: Path, *, delay: float, **settings: Any
) -> AsyncIterator[int]:
    """The port of a gateway process in front of the fake engine."""
    registry.add_base(make_base(tmp_path / "base"))
    serving = ServeSettings(base="tiny", auth=False, port=0, worker=False, drain_delay=0, **settings)
    with fake_server(registry.home, tiny_base_folder, serving, log=tmp_path / "log", FAKE_DELAY=str(delay)) as server:
        yield int(server.url.rpartition(":")[2])


async def test_a_thousand_streams_for_a_minute(registry: Registry, tmp_path: Path, tiny_base_folder: Path) -> None:
    tokens = int(SECONDS / STREAM_DELAY)
    body = {"model": "tiny", "prompt": "abc", "max_tokens": tokens, "stream": True}
    async with fake(
        registry, tmp_path, tiny_base_folder, delay=STREAM_DELAY, max_batch=STREAMS, max_connections=2 * STREAMS
    ) as port:
        answers = await asyncio.gather(*(ask(port, body) for _ in range(STREAMS)))
    assert [answer.status for answer in answers] == [200] * STREAMS
    assert [answer.end for answer in answers] == ["data: [DONE]"] * STREAMS
    assert {len(answer.times) for answer in answers} <= {tokens + 1, tokens + 2}
    gaps = [late - early for answer in answers for early, late in itertools.pairwise(answer.times)]
    print(
        f"\n{STREAMS} streams, {tokens} tokens each: gaps p50 {median(gaps):.3f} s, p99 {quantiles(gaps, n=100)[98]:.3f} s"
    )


async def test_half_as_many_again_as_there_is_room_for(
    registry: Registry, tmp_path: Path, tiny_base_folder: Path
) -> None:
    body = {"model": "tiny", "prompt": "abc", "max_tokens": TOKENS}
    room = PLACES / (TOKENS * DELAY)

    async def offer(port: int, rate: float) -> list[Answer]:
        asking, began = [], time.perf_counter()
        for number in range(int(rate * 20)):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            asking.append(asyncio.create_task(ask(port, body)))
        return await asyncio.gather(*asking)

    settings = {"max_batch": PLACES, "max_waiting": 0}
    async with fake(registry, tmp_path, tiny_base_folder, delay=DELAY, **settings) as port:
        usual = await offer(port, 0.5 * room)
        crowded = await offer(port, 1.5 * room)
    assert {answer.status for answer in usual} == {200}
    assert {answer.status for answer in crowded} == {200, 429}
    refused = [answer for answer in crowded if answer.status == 429]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    before, after = (
        quantiles([answer.seconds for answer in answers if answer.status == 200], n=20)[18]
        for answers in (usual, crowded)
    )
    share = len(refused) / len(crowded)
    print(
        f"\n{1.5 * room:.0f} requests a second where {room:.0f} fit: {share:.0%} refused; p95 {before:.3f} → {after:.3f} s"
    )
    assert 0.2 < share < 0.6
    assert after < 1.25 * before


async def test_a_tenant_that_floods_does_not_make_another_wait(
    tmp_path: Path, base_folder: Path, base_cache: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_SERVE_AUTH", "true")
    home, keys = Home(tmp_path / "home"), {}
    with Registry.open(base_cache) as cache, Registry.open(home) as registry:
        base = registry.add_base(msgspec.structs.replace(cache.base("smollm2-135m"), path=str(base_folder)))
        names = ["noisy/docs", "quiet/docs"]
        publish(registry, base, random_loras(tmp_path, base_folder, 2, size=0.05), name=names.__getitem__)
        for tenant in ("noisy", "quiet"):
            keys[tenant] = registry.keys.create(tenant=tenant, scopes=("infer",), actor="test")[1]
    with start_server(tmp_path, home, "smollm2-135m", "--quant", "nf4") as server:
        port = int(server.url.rpartition(":")[2])

        async def one(tenant: str, tokens: int) -> Answer:
            body = {"model": f"{tenant}/docs", "prompt": "Once upon a time", "max_tokens": tokens, "stream": True}
            # Greedy, since a sampled first token may be half a character, whose text comes with the second.
            return await ask(port, body | {"ignore_eos": True, "temperature": 0}, key=keys[tenant])

        async def quiet() -> list[float]:
            answers = [await one("quiet", 4) for _ in range(ASKED)]
            assert [answer.status for answer in answers] == [200] * ASKED
            return [answer.times[0] for answer in answers]

        await quiet()  # loads the adapter
        alone = quantiles(await quiet(), n=20)[18]
        flood = [asyncio.create_task(one("noisy", 256)) for _ in range(FLOOD)]
        await asyncio.sleep(2)
        beside = quantiles(await quiet(), n=20)[18]
        running = sum(not task.done() for task in flood)
        ended = await asyncio.gather(*flood)
    assert running > FLOOD // 3, "the flood was over before it was measured"
    assert {answer.status for answer in ended} == {200, 429}  # a tenant has a share of the queue
    step = median(late - early for answer in ended for early, late in itertools.pairwise(answer.times[:-1]))
    print(
        f"\nfirst token p95: {alone:.3f} s alone, {beside:.3f} s beside {running} of {FLOOD} requests; a step {step:.3f} s"
    )
    assert beside <= 1.5 * alone + step
