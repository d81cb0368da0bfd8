"""The supervised engine process: started, killed, hung and started again; no request waits for ever."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.engine.ipc.scripted_engine import GARBLED, STATS, TALKATIVE, UNLUCKY
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.ipc.heartbeat import (
    LONGEST_TICK,
    STEP_ALLOWANCE,
    TICK_EVERY,
    EngineTimeouts,
    Heartbeat,
    SilenceMonitor,
)
from tunery.gateway.engine.ipc.supervisor import SupervisedEngine
from tunery.gateway.engine.messages import Alive, Event, Generate, Stats, Token
from tunery.gateway.engine.sampling_params import SamplingParams
from tunery.registry.errors import Unavailable

COMMAND = (sys.executable, "-m", "tests.gateway.engine.ipc.scripted_engine")


def config(**changes: Any) -> EngineConfig:
    return EngineConfig(base_folder="x", base_name="tiny", base_digest="0", **changes)


def request(name: str, length: int) -> Generate:
    return Generate(id=name, prompt=tuple(range(length)), sampling=SamplingParams(max_tokens=length))


@pytest.fixture
async def engine() -> AsyncIterator[SupervisedEngine]:
    engine = SupervisedEngine(config(), command=COMMAND)
    await engine.start()
    await asyncio.wait_for(engine.wait_ready(), 20)
    yield engine
    await engine.stop()


async def test_tokens_come_back_to_their_request(engine: SupervisedEngine) -> None:
    async def run(name: str, length: int) -> list[int]:
        return [token.token async for token in engine.generate(request(name, length))]

    assert list(await asyncio.gather(run("a", 3), run("b", 5))) == [[0, 1, 2], [0, 1, 2, 3, 4]]
    assert (await engine.load(AdapterSource("d", "a/b", 1, {}))).bytes == 5


async def collect(engine: SupervisedEngine, request: Generate) -> list[int]:
    return [token.token async for token in engine.generate(request)]


@pytest.mark.slow
async def test_a_killed_engine_fails_what_had_begun_and_the_next_one_answers_the_rest(engine: SupervisedEngine) -> None:
    pid = engine.pid
    assert pid is not None
    begun = engine.generate(request("begun", 90))
    await anext(begun)
    # The scripted engine answers one after the other, so these have no token yet.
    waiting = [asyncio.create_task(collect(engine, request(f"r{i}", 3))) for i in range(4)]
    vector = asyncio.create_task(engine.load(AdapterSource("d", "a/b", 1, {})))
    await asyncio.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Unavailable) as caught:
        await asyncio.wait_for(_exhaust(begun), 20)
    assert caught.value.code == "engine_restarted"
    assert engine.ready is None
    outage = engine.outage
    assert outage is not None
    assert outage.reason == "starting"
    assert caught.value.retry_after == outage.retry_after >= 1
    early = asyncio.create_task(collect(engine, request("early", 2)))
    assert await asyncio.wait_for(asyncio.gather(*waiting), 30) == [[0, 1, 2]] * 4
    assert await asyncio.wait_for(early, 30) == [0, 1]
    with pytest.raises(Unavailable):
        await vector
    assert engine.pid != pid
    assert (engine.restarts, engine.outage) == (1, None)


async def _exhaust(stream: AsyncGenerator[Token, None]) -> None:
    async for _ in stream:
        """Take them all."""


async def test_nobody_is_held_for_longer_than_allowed() -> None:
    engine = SupervisedEngine(config(), command=("/bin/sleep", "60"), timeouts=EngineTimeouts(hold=0.05))
    await engine.start()
    with pytest.raises(Unavailable, match="starting") as caught:
        await anext(engine.generate(request("early", 2)))
    assert (caught.value.code, caught.value.retry_after > 1) == ("engine_starting", True)
    waiting = asyncio.create_task(engine.wait_ready())
    await asyncio.sleep(0)
    await engine.stop()
    with pytest.raises(Unavailable, match="stopped"):
        await waiting


@pytest.mark.slow
async def test_a_hung_engine_is_not_ready_until_it_goes_on_and_is_replaced_when_it_does_not() -> None:
    engine = SupervisedEngine(config(), command=COMMAND, timeouts=EngineTimeouts(unready=2.5, restart=6, hold=60))
    await engine.start()
    ready = await asyncio.wait_for(engine.wait_ready(), 20)
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    while engine.ready is not None:
        await asyncio.sleep(0.05)
    outage = engine.outage
    assert outage is not None
    assert outage.reason == "not responding"
    os.kill(pid, signal.SIGCONT)
    assert await asyncio.wait_for(engine.wait_ready(), 20) is ready
    assert (engine.pid, engine.restarts, engine.outage) == (pid, 0, None)
    begun = engine.generate(request("begun", 90))
    await anext(begun)
    waiting = asyncio.create_task(collect(engine, request("waiting", 2)))
    await asyncio.sleep(0.05)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(Unavailable) as caught:
        await asyncio.wait_for(_exhaust(begun), 60)
    assert caught.value.code == "engine_restarted"
    assert await asyncio.wait_for(waiting, 30) == [0, 1]
    assert (engine.pid != pid, engine.restarts) == (True, 1)
    await engine.stop()


def test_only_the_engines_own_silence_counts() -> None:
    now = [0.0]
    monitor = SilenceMonitor(lambda: now[0])
    now[0] = 1000.0
    monitor.tick()
    assert monitor.silence == LONGEST_TICK, "this process did not run"
    for _ in range(20):
        now[0] += TICK_EVERY
        monitor.tick()
    assert monitor.silence == LONGEST_TICK + 20 * TICK_EVERY
    monitor.record(Alive(0.0))
    assert monitor.silence == 0
    monitor.record(Alive(500.0))
    assert monitor.silence == 500.0 / STEP_ALLOWANCE, "a step may be long"
    monitor.record(STATS)
    assert monitor.silence == 0


def test_a_heartbeat_says_how_long_the_step_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery.gateway.engine.ipc.heartbeat.BEAT_EVERY", 0.01)
    sent: queue.SimpleQueue[Event] = queue.SimpleQueue()
    over = threading.Event()

    def send(event: Event) -> None:
        if over.is_set():
            raise BrokenPipeError
        sent.put(event)

    heartbeat = Heartbeat(send)
    heartbeat.start()
    assert sent.get(timeout=20) == Alive(0.0), "nothing runs"
    heartbeat.begin()
    while (event := sent.get(timeout=20)) == Alive(0.0):
        """Sent before."""
    assert isinstance(event, Alive)
    later = [sent.get(timeout=20) for _ in range(2)]
    assert event.step_seconds < later[0].step_seconds < later[1].step_seconds  # type: ignore[union-attr]
    heartbeat.end()
    while sent.get(timeout=20) != Alive(0.0):
        """Sent before."""
    over.set()


@pytest.mark.slow
async def test_an_engine_that_sends_garbage_is_replaced(engine: SupervisedEngine) -> None:
    pid = engine.pid
    with pytest.raises(Unavailable):
        await engine.generate(request(GARBLED, 1)).__anext__()
    await asyncio.wait_for(engine.wait_ready(), 20)
    assert engine.pid != pid
    assert len([token async for token in engine.generate(request("again", 2))]) == 2


async def test_a_watcher_that_breaks_does_not_end_the_engine(
    engine: SupervisedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Stats] = []

    def broken(stats: Stats) -> None:
        raise ValueError("broken watcher")

    engine.on_stats(broken)
    engine.on_stats(seen.append)
    async for _ in engine.generate(request(TALKATIVE, 2)):
        pass
    assert len(seen) == 1
    assert engine.stats is seen[0]
    assert "broken watcher" in caplog.text
    assert engine.restarts == 0


async def test_a_program_that_is_not_there_is_tried_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery.gateway.engine.ipc.supervisor.MAX_PAUSE", 0.05)
    engine = SupervisedEngine(config(), command=("/nowhere/at/all",))
    await engine.start()
    with pytest.raises(Unavailable, match="ended 5 times"):
        await asyncio.wait_for(engine.wait_ready(), 10)
    await engine.stop()


async def test_an_engine_ends_with_a_gateway_that_is_killed() -> None:
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.gateway.engine.ipc.scripted_gateway", stdout=asyncio.subprocess.PIPE
    )
    assert gateway.stdout is not None
    pid = int(await asyncio.wait_for(gateway.stdout.readline(), 20))
    os.kill(pid, 0)
    gateway.kill()
    await gateway.wait()
    deadline = time.monotonic() + 60
    while _alive(pid):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def _alive(pid: int) -> bool:
    """Running, that is, neither gone nor a zombie that nobody in this container collects."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
async def test_an_engine_that_never_gets_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery.gateway.engine.ipc.supervisor.MAX_PAUSE", 0.1)
    engine = SupervisedEngine(config(context_length=UNLUCKY), command=COMMAND)
    await engine.start()
    with pytest.raises(Unavailable, match="ended 5 times"):
        await asyncio.wait_for(engine.wait_ready(), 30)
    await engine.stop()


async def test_stopping_ends_the_process() -> None:
    engine = SupervisedEngine(config(), command=COMMAND)
    await engine.start()
    await asyncio.wait_for(engine.wait_ready(), 20)
    pid = engine.pid
    assert pid is not None
    await engine.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
