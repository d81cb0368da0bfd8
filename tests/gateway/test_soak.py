"""Minutes of mixed load on a real server whose adapters do not all fit: nothing fails, nothing leaks. `make soak`.

SOAK_SECONDS sets how long; the default is three minutes.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import openai
import psutil
import pytest

from tests.gateway.test_serve import Process, start, tiny_lora
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.manager import load_plugins
from tunery.registry.home import Home
from tunery.registry.registry import Registry

ADAPTERS, CLIENTS = 40, 12
SECONDS = float(os.environ.get("SOAK_SECONDS", "180"))
GROWTH = 0.05


def memory(server: Process) -> int:
    """Resident bytes of the gateway and its engine."""
    gateway = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in (gateway, *gateway.children(recursive=True)))


@pytest.mark.soak
async def test_memory_is_flat_and_nothing_fails_while_adapters_come_and_go(
    tmp_path: Path, tiny_base_folder: Path
) -> None:
    home = Home(tmp_path / "home")
    with Registry.open(home) as registry:
        base = resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins(), name="tiny")
        for number in range(ADAPTERS):
            for seed in (number, ADAPTERS + number):
                folder = tiny_lora(tmp_path / f"lora-{seed}", tiny_base_folder, seed=seed)
                registry.publish(
                    f"tenant/a{number}", folder, base=base, method="lora", manifest={}, metrics={}, actor="t"
                )
    os.environ["TUNERY_SERVE_ADAPTER_BUDGET_MB"] = "1"
    server = start(tmp_path, home, tiny_base_folder)
    failures: list[str] = []
    answered = 0
    done = asyncio.Event()

    async def ask_on(seed: int) -> None:
        nonlocal answered
        noise = random.Random(seed)
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
        while not done.is_set():
            number = min(int(noise.paretovariate(0.7)) - 1, ADAPTERS - 1)
            model = noise.choice(["tiny", f"tenant/a{number}", f"tenant/a{number}@1"])
            messages = [{"role": "user", "content": "word " * noise.randint(1, 40)}]
            try:
                stream = await client.chat.completions.create(
                    model=model, messages=messages, max_tokens=noise.randint(1, 40), stream=True
                )
                async for _ in stream:
                    if noise.random() < 0.002:
                        await stream.close()
                        break
                answered += 1
            except openai.OpenAIError as error:
                failures.append(repr(error))
        await client.close()

    clients = [asyncio.create_task(ask_on(seed)) for seed in range(CLIENTS)]
    try:
        await asyncio.sleep(SECONDS / 3)
        early = memory(server)
        ends = time.monotonic() + 2 * SECONDS / 3
        moves = 0
        with Registry.open(home) as registry:
            while time.monotonic() < ends:
                registry.move_alias(f"tenant/a{moves % ADAPTERS}", "production", 1 + moves % 2, actor="soak")
                moves += 1
                await asyncio.sleep(0.5)
        late = memory(server)
    finally:
        done.set()
        await asyncio.gather(*clients, return_exceptions=True)
        server.process.kill()
        server.process.wait()
        del os.environ["TUNERY_SERVE_ADAPTER_BUDGET_MB"]
    assert failures == []
    assert answered > SECONDS
    assert late <= early * (1 + GROWTH), f"{early / 1e6:.0f} MB grew to {late / 1e6:.0f} MB over {answered} requests"
