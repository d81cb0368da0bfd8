"""Minutes of mixed load on a real server with far more adapters than fit: nothing fails, nothing leaks, nothing
changes.

`make soak`. SOAK_SECONDS sets how long; the default is ten minutes. Memory may settle for the first fifth of the time
(two minutes); from then on the median of a minute and that of the last minute must agree.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import msgspec
import openai
import psutil
import pytest

from tests.gateway.serve_process import ServeProcess, publish, random_loras, start_server
from tunery.registry.home import Home
from tunery.registry.registry import Registry

SECONDS = int(os.environ.get("SOAK_SECONDS", "600"))
SETTLING, WINDOW, GROWTH = SECONDS // 5, SECONDS // 10, 0.05
"""A second is one in which memory was measured: time that the machine stood still does not count."""
ADAPTERS, VERSIONS, RANK = 200, 2, 2
ROOM = ("--adapter-budget-mb", "30", "--adapter-ram-mb", "60")
"""About 25 of the adapters are resident, and about 50 in main memory."""
CACHE = ("--max-batch", "16", "--kv-tokens", "8192", "--context-length", "1024")
"""So small that all of it has been touched before memory has to have settled."""
WORDS = ["the", "invoice", "was", "charged", "twice", "in", "May", "please", "refund", "one", "payment", "and", "close"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"team": {"enum": ["billing", "sales"]}, "n": {"type": "integer"}},
}
SCHEMA |= {"required": ["team", "n"], "additionalProperties": False}
DIVIDED = {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (7, 11, 13, 17, 19, 23)]}
HOSTILE = [
    b'{"model":"smollm2-135m","prompt":[' + b"7," * 2_000_000 + b"7]}",
    b'{"model":"smollm2-135m","prompt":' + b"[" * 4_000_000,
    b"x" * 20_000_000,
    msgspec.json.encode({"model": "smollm2-135m", "prompt": "x", "guided_json": DIVIDED}),
]

pytestmark = pytest.mark.soak


@dataclass
class Soak:
    """A server under load: what was asked, what went wrong, the answers so far, and memory by second."""

    server: ServeProcess
    client: openai.AsyncOpenAI
    asked: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    memory: list[tuple[int, int]] = field(default_factory=list)
    moves: int = 0

    def check(self, what: str, text: str) -> None:
        """The same question to the same version has the same answer, whatever happened meanwhile."""
        if self.answers.setdefault(what, text) != text:
            self.failures.append(f"{what}: {self.answers[what]!r} became {text!r}")

    def window(self, start: int) -> tuple[int, int]:
        """The median memory of the gateway and of the engine, in bytes, of the window that begins at that second."""
        rows = self.memory[start : start + WINDOW]
        return int(median(row[0] for row in rows)), int(median(row[1] for row in rows))


def adapter(noise: random.Random) -> str:
    """An adapter: some are asked for often, and all of them sometimes."""
    popular = min(int(noise.paretovariate(0.7)) - 1, ADAPTERS - 1)
    return f"tenant{popular % 7}/a{popular}" if noise.random() < 0.6 else named(noise.randrange(ADAPTERS))


def named(number: int) -> str:
    return f"tenant{number % 7}/a{number}"


def words(noise: random.Random, most: int) -> str:
    return " ".join(noise.choices(WORDS, k=noise.randint(1, most)))


# -- kinds of requests -------------------------------------------------------------------------------------------------


async def chat(soak: Soak, noise: random.Random) -> None:
    """A conversation on what `production` means now, streamed; some clients leave in the middle."""
    messages: Any = [{"role": "user", "content": words(noise, 60)}]
    model = "smollm2-135m" if noise.random() < 0.2 else adapter(noise)
    stream = await soak.client.chat.completions.create(
        model=model, messages=messages, max_tokens=noise.randint(1, 40), temperature=0.8, stream=True
    )
    leaves = noise.random() < 0.15
    async for _ in stream:
        if leaves and noise.random() < 0.2:
            await stream.close()
            soak.asked["cancelled"] += 1
            return


async def whole(soak: Soak, noise: random.Random) -> None:
    """A completion of a fixed version, greedy, with the same few prompts again and again."""
    model, prompt = f"{adapter(noise)}@{noise.randint(1, VERSIONS)}", " ".join(WORDS[: 1 + noise.randrange(4)])
    answer = await soak.client.completions.create(model=model, prompt=prompt, max_tokens=12, temperature=0)
    soak.check(f"{model}: {prompt}", answer.choices[0].text)


async def several(soak: Soak, noise: random.Random) -> None:
    """Several choices with log-probabilities and a seed."""
    await soak.client.completions.create(
        model=adapter(noise), prompt=words(noise, 20), max_tokens=10, n=3, logprobs=3, seed=noise.randrange(100)
    )


async def composed(soak: Soak, noise: random.Random) -> None:
    """Two adapters at once, weighted."""
    one, other = noise.sample(range(ADAPTERS), 2)
    model = f"{named(one)}:0.5+{named(other)}"
    await soak.client.completions.create(model=model, prompt=words(noise, 30), max_tokens=12)


async def constrained(soak: Soak, noise: random.Random) -> None:
    """An answer that is what a schema or an expression says; some schemas come again, others are new."""
    number = noise.randrange(10) if noise.random() < 0.5 else noise.randrange(10**6)
    schema = SCHEMA | {"title": str(number)}
    extra: Any = (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
        if noise.random() < 0.7
        else {"regex": rf"[a-z]{{1,{1 + number % 20}}}"}
    )
    messages: Any = [{"role": "user", "content": words(noise, 10)}]
    answer = await soak.client.chat.completions.create(
        model=adapter(noise), messages=messages, max_tokens=40, extra_body=extra
    )
    choice = answer.choices[0]
    if choice.finish_reason == "stop" and "regex" not in extra:
        msgspec.json.decode(choice.message.content or "", type=dict[str, Any])


async def scored(soak: Soak, noise: random.Random) -> None:
    """The prompt's own log-probabilities."""
    await soak.client.completions.create(
        model=adapter(noise), prompt=words(noise, 60), max_tokens=1, extra_body={"prompt_logprobs": 2}
    )


async def embedded(soak: Soak, noise: random.Random) -> None:
    """Vectors of a few texts."""
    texts = [words(noise, 30) for _ in range(3)]
    vectors = await soak.client.embeddings.create(model=adapter(noise), input=texts)
    if len(vectors.data) != len(texts):
        soak.failures.append("vectors are missing")


async def hostile(soak: Soak, noise: random.Random) -> None:
    """A large body, or a grammar that takes minutes to compile: refused, whatever it took to read it."""
    async with httpx.AsyncClient(timeout=120) as client:
        headers = {"content-type": "application/json"}
        url = f"{soak.server.url}/v1/completions"
        response = await client.post(url, content=noise.choice(HOSTILE), headers=headers)
    if response.status_code not in (400, 413):
        soak.failures.append(f"a hostile body got {response.status_code}")
    await asyncio.sleep(1)


KINDS: list[Callable[[Soak, random.Random], Awaitable[None]]] = [
    *(chat, chat, chat, chat, whole, whole, several, composed, constrained, scored, embedded),
    hostile,
]
"""One client each, so that what the kinds need beside each other has been needed early."""


# -- the soak ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, base_folder: Path, base_cache: Home) -> Iterator[ServeProcess]:
    """A server of the real base with all adapters in two versions each."""
    with Registry.open(base_cache) as cache:
        base = cache.base("smollm2-135m")
    home = Home(tmp_path / "home")
    with Registry.open(home) as registry:
        registry.add_base(base)
        folders = random_loras(tmp_path, base_folder, ADAPTERS * VERSIONS, rank=RANK, size=0.5)
        publish(registry, base, folders, name=lambda index: named(index // VERSIONS))
    with start_server(tmp_path, home, base.name, *ROOM, *CACHE) as running:
        yield running


@asynccontextmanager
async def beside(soak: Soak) -> AsyncIterator[None]:
    """Clients of every kind, an operator who moves aliases, and the measuring of memory, for as
    long as the block runs."""
    tasks = [asyncio.create_task(_keep_sending(soak, kind, seed)) for seed, kind in enumerate(KINDS)]
    tasks += [asyncio.create_task(_move_aliases(soak)), asyncio.create_task(_measure(soak))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def _keep_sending(soak: Soak, kind: Callable[[Soak, random.Random], Awaitable[None]], seed: int) -> None:
    noise = random.Random(seed)
    while True:
        try:
            await kind(soak, noise)
        except (openai.OpenAIError, msgspec.DecodeError) as error:
            soak.failures.append(f"{kind.__name__}: {error!r}")
        soak.asked[kind.__name__] += 1


async def _move_aliases(soak: Soak) -> None:
    with Registry.open(soak.server.home) as registry:
        while True:
            move = random.Random(soak.moves)
            registry.move_alias(named(move.randrange(ADAPTERS)), "production", move.randint(1, VERSIONS), actor="soak")
            soak.moves += 1
            await asyncio.sleep(0.2)


async def _measure(soak: Soak) -> None:
    gateway, engine = psutil.Process(soak.server.process.pid), psutil.Process(soak.server.engine)
    while True:
        soak.memory.append((gateway.memory_info().rss, engine.memory_info().rss))
        await asyncio.sleep(1)


def report(soak: Soak, exposition: str) -> str:
    """What happened, for whoever watches."""
    counted: Counter[str] = Counter()
    for line in exposition.splitlines():
        for name in ("loads", "evictions", "cache_hits"):
            if line.startswith(f"tunery_adapter_{name}_total"):
                counted[name] += int(float(line.split()[-1]))
    windows = [soak.window(start) for start in range(0, SECONDS, WINDOW)]
    shown = " ".join(f"{gateway / 1e6:.0f}+{engine / 1e6:.0f}" for gateway, engine in windows)
    asked = ", ".join(f"{name} {count}" for name, count in sorted(soak.asked.items()))
    return f"{asked}; {dict(counted)}; {soak.moves} alias moves\nMB of gateway and engine every {WINDOW} s: {shown}"


@pytest.mark.timeout(2 * SECONDS + 600)
async def test_memory_is_flat_and_nothing_fails_while_adapters_come_and_go(server: ServeProcess) -> None:
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=120)
    async with client:
        soak = Soak(server, client)
        async with beside(soak):
            while len(soak.memory) < SECONDS:
                await asyncio.sleep(0.5)
    print(text := report(soak, httpx.get(f"{server.url}/metrics").text))
    assert soak.failures == []
    assert all(soak.asked[kind.__name__] > SECONDS / 10 for kind in KINDS), text
    early, late = soak.window(SETTLING), soak.window(SECONDS - WINDOW)
    assert sum(late) <= sum(early) * (1 + GROWTH), text
