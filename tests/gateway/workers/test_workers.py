"""`tunery serve --workers`: several processes that answer as one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.gateway.serve_process import TINY, ServeProcess, publish, random_loras, start_server
from tunery.gateway.workers import workers
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.registry.home import Home
from tunery.registry.registry import Registry

pytestmark = pytest.mark.slow

COUNT = 2


@pytest.fixture
def server(tmp_path: Path, home: Home, registry: Registry, tiny_base_folder: Path) -> Iterator[ServeProcess]:
    with start_server(tmp_path, home, tiny_base_folder, *TINY, "--workers", str(COUNT)) as server:
        yield server


def processes(server: ServeProcess) -> list[int]:
    """The gateway processes."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    found = []
    for child in map(int, children):
        with contextlib.suppress(OSError):
            if b"gateway.workers.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def ask(server: ServeProcess, **more: object) -> httpx.Response:
    """A request on a connection of its own, so that any process may get it."""
    body = {"model": model(server), "prompt": "abc", "max_tokens": 3, "ignore_eos": True} | more
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)


def model(server: ServeProcess) -> str:
    return str(httpx.get(f"{server.url}/v1/models", timeout=120).json()["data"][0]["id"])


def counted(server: ServeProcess, series: str) -> float:
    for line in httpx.get(f"{server.url}/metrics", timeout=120).text.splitlines():
        if line.startswith(f"{series} "):
            return float(line.rpartition(" ")[2])
    raise AssertionError(series)


def until(condition: object, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


DONE = 'tunery_requests_total{adapter="base",outcome="length"}'


def test_processes_answer_as_one_and_are_replaced(server: ServeProcess) -> None:
    first = processes(server)
    assert len(first) == COUNT
    assert f"from {COUNT} processes" in server.log.read_text()
    answers = [ask(server) for _ in range(12)]
    assert [answer.status_code for answer in answers] == [200] * 12
    assert counted(server, DONE) == 12
    assert counted(server, "tunery_engine_up") == 1
    # One is killed, with a stream that it answers: the others go on, and what was counted stays so.
    os.kill(first[0], signal.SIGKILL)
    until(lambda: len(processes(server)) == COUNT and first[0] not in processes(server), "no new process")
    until(lambda: ask(server).status_code == 200, "no answer")
    assert counted(server, DONE) >= 13
    # The engine is killed: both attach to the next.
    os.kill(server.engine, signal.SIGKILL)
    answers = [ask(server) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert processes(server)[0] in first


def test_sigterm_ends_all_with_their_last_answers(server: ServeProcess) -> None:
    name, finished = model(server), []

    def read() -> None:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
        stream = client.completions.create(
            model=name, prompt="abc", max_tokens=60, stream=True, extra_body={"ignore_eos": True}
        )
        finished.append([chunk.choices[0].finish_reason for chunk in stream][-1])

    readers = [threading.Thread(target=read) for _ in range(6)]
    for reader in readers:
        reader.start()
    until(lambda: counted(server, "tunery_requests_in_flight") + len(finished) >= 6, "no streams")
    left = processes(server)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(120) == 0
    for reader in readers:
        reader.join(60)
    assert finished == ["length"] * 6
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]


def be_impatient() -> None:
    workers.KILL_SECONDS = 1.0


def test_a_process_that_hangs_is_killed_in_the_end(
    tmp_path: Path, home: Home, registry: Registry, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_SERVE_DRAIN_SECONDS", "1")
    arguments = (*TINY, "--workers", str(COUNT))
    with start_server(tmp_path, home, tiny_base_folder, *arguments, prepare=be_impatient) as server:
        hung, other = processes(server)
        os.kill(hung, signal.SIGSTOP)
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.process.wait(timeout=120) == 0, server.log.read_text()
        assert "have not ended in time and are killed: 1" in server.log.read_text()
        assert "Traceback" not in server.log.read_text()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (hung, other)), "the processes are there")


def test_the_engine_and_the_processes_end_with_the_one_that_started_them(server: ServeProcess) -> None:
    left = [*processes(server), server.engine]
    server.process.kill()
    server.process.wait(60)
    until(lambda: not [pid for pid in left if _runs(pid)], "they are still there")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_limits_and_keys_hold_for_all_processes(
    tmp_path: Path, home: Home, registry: Registry, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins())
    publish(registry, base, random_loras(tmp_path, tiny_base_folder, 1), name=lambda _: "acme/support")
    monkeypatch.setenv("TUNERY_SERVE_AUTH", "true")
    monkeypatch.setenv("TUNERY_LIMITS_REQUESTS_PER_MINUTE", "10")
    key, token = registry.keys.create(tenant="acme", scopes=("infer",), actor="test")
    with start_server(tmp_path, home, tiny_base_folder, *TINY, "--workers", str(COUNT)) as server:
        headers = {"authorization": f"Bearer {token}"}
        body = {"model": "acme/support", "prompt": "abc", "max_tokens": 2}

        def ask_with_key() -> int:
            return httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=120).status_code

        statuses = [ask_with_key() for _ in range(30)]
        assert statuses.count(200) == 10
        assert set(statuses) == {200, 429}
        registry.keys.revoke(key.id)
        until(lambda: [ask_with_key() for _ in range(6)] == [401] * 6, "a process still knows the key")


def test_a_port_that_is_taken_is_said_at_the_start(
    tmp_path: Path, home: Home, registry: Registry, tiny_base_folder: Path, server: ServeProcess
) -> None:
    port = server.url.rpartition(":")[2]
    command = [sys.executable, "-m", "tunery.gateway.cli", "serve", "--base", str(tiny_base_folder), *TINY]
    done = subprocess.run(
        [*command, "--workers", "2", "--port", port],
        env={**os.environ, "TUNERY_HOME": str(home.root), "TUNERY_SERVE_AUTH": "false"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
