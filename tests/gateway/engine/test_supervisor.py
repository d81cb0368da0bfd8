"""The engine's process: started, answered for, killed, started again; nobody waits for ever."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.engine.scripted import GARBLED, TALKATIVE, UNLUCKY
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.messages import AdapterSource, Generate, Sampling, Stats
from tunery.gateway.engine.supervisor import EngineProcess
from tunery.registry.errors import Unavailable

COMMAND = (sys.executable, "-m", "tests.gateway.engine.scripted")


def config(**changes: Any) -> EngineConfig:
    return EngineConfig(base_folder="x", base_name="tiny", base_digest="0", **changes)


def ask(name: str, length: int) -> Generate:
    return Generate(id=name, prompt=tuple(range(length)), sampling=Sampling(max_tokens=length))


@pytest.fixture
async def engine() -> AsyncIterator[EngineProcess]:
    engine = EngineProcess(config(), command=COMMAND)
    await engine.start()
    await asyncio.wait_for(engine.wait_ready(), 20)
    yield engine
    await engine.stop()


async def test_tokens_come_back_to_whoever_asked(engine: EngineProcess) -> None:
    async def run(name: str, length: int) -> list[int]:
        return [token.token async for token in engine.generate(ask(name, length))]

    assert await asyncio.gather(run("a", 3), run("b", 5)) == [[0, 1, 2], [0, 1, 2, 3, 4]]
    assert (await engine.load(AdapterSource("d", "a/b", 1, {}))).bytes == 5


async def test_a_killed_engine_fails_its_requests_and_comes_back(engine: EngineProcess) -> None:
    pid = engine.pid
    assert pid is not None

    async def run(name: str) -> None:
        with pytest.raises(Unavailable) as caught:
            async for _ in engine.generate(ask(name, 90)):
                pass
        assert caught.value.code == "engine_restarted"

    running = [asyncio.create_task(run(f"r{i}")) for i in range(5)]
    await asyncio.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(asyncio.gather(*running), 5)
    assert engine.ready is None
    with pytest.raises(Unavailable, match="starting"):
        await engine.generate(ask("early", 2)).__anext__()
    started = time.monotonic()
    await asyncio.wait_for(engine.wait_ready(), 10)
    assert time.monotonic() - started < 10
    assert engine.pid != pid
    assert engine.restarts == 1
    assert len([token async for token in engine.generate(ask("again", 2))]) == 2


async def test_an_engine_that_sends_garbage_is_replaced(engine: EngineProcess) -> None:
    pid = engine.pid
    with pytest.raises(Unavailable):
        await engine.generate(ask(GARBLED, 1)).__anext__()
    await asyncio.wait_for(engine.wait_ready(), 20)
    assert engine.pid != pid
    assert len([token async for token in engine.generate(ask("again", 2))]) == 2


async def test_a_watcher_that_breaks_does_not_end_the_engine(
    engine: EngineProcess, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Stats] = []

    def broken(stats: Stats) -> None:
        raise ValueError("broken watcher")

    engine.on_stats(broken)
    engine.on_stats(seen.append)
    async for _ in engine.generate(ask(TALKATIVE, 2)):
        pass
    assert len(seen) == 1
    assert engine.stats is seen[0]
    assert "broken watcher" in caplog.text
    assert engine.restarts == 0


async def test_a_program_that_is_not_there_is_tried_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery.gateway.engine.supervisor.LONGEST_PAUSE", 0.05)
    engine = EngineProcess(config(), command=("/nowhere/at/all",))
    await engine.start()
    with pytest.raises(Unavailable, match="ended 5 times"):
        await asyncio.wait_for(engine.wait_ready(), 10)
    await engine.stop()


async def test_an_engine_ends_with_a_gateway_that_is_killed() -> None:
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.gateway.engine.scripted_gateway", stdout=asyncio.subprocess.PIPE
    )
    assert gateway.stdout is not None
    pid = int(await asyncio.wait_for(gateway.stdout.readline(), 20))
    os.kill(pid, 0)
    gateway.kill()
    await gateway.wait()
    deadline = time.monotonic() + 10
    while _alive(pid):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def _alive(pid: int) -> bool:
    """Running, that is, neither gone nor a zombie that nobody in this container collects."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_an_engine_that_never_gets_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery.gateway.engine.supervisor.LONGEST_PAUSE", 0.1)
    engine = EngineProcess(config(context_length=UNLUCKY), command=COMMAND)
    await engine.start()
    with pytest.raises(Unavailable, match="ended 5 times"):
        await asyncio.wait_for(engine.wait_ready(), 30)
    await engine.stop()


async def test_stopping_ends_the_process() -> None:
    engine = EngineProcess(config(), command=COMMAND)
    await engine.start()
    await asyncio.wait_for(engine.wait_ready(), 20)
    pid = engine.pid
    assert pid is not None
    await engine.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
