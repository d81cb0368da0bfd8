"""Clients that do not read, do not send, or send far too much, against a real server: what they hold is released."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.gateway.serve_process import TINY, ServeProcess, start_server
from tunery.registry.errors import InvalidInput
from tunery.registry.home import Home

pytestmark = pytest.mark.slow

CHOICES, CONNECTIONS, SECONDS = 16, 24, 60
LIMITS: tuple[str, ...] = ("--host", "localhost", "--read-seconds", "2", "--write-seconds", "3")
LIMITS += ("--max-connections", str(CONNECTIONS))
FLOOD = {"model": "base", "prompt": "x", "n": CHOICES, "max_tokens": 480, "stream": True, "ignore_eos": True}
FLOOD |= {"logprobs": 20}
"""Several megabytes of events: more than all buffers between here and there take."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("connections")
    base = folder / "base"
    base.symlink_to(tiny_base_folder)
    with start_server(folder, Home(folder / "home"), base, *TINY, *LIMITS) as running:
        yield running


def connect(server: ServeProcess, *, buffer: int = 0) -> socket.socket:
    """A connection; with a small receive `buffer` the server soon has to wait for its reader."""
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(SECONDS)
    connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    return connection


def head(path: str, size: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\r\n".encode()


def flood(server: ServeProcess) -> socket.socket:
    """Ask for a stream of many choices and read no more than its first bytes."""
    connection, body = connect(server, buffer=4096), json.dumps(FLOOD).encode()
    connection.sendall(head("/v1/completions", len(body)) + body)
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    return connection


def in_flight(server: ServeProcess) -> int:
    lines = httpx.get(f"{server.url}/metrics", timeout=SECONDS).text.splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("tunery_requests_in_flight "))))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended(connection: socket.socket) -> bytes:
    """What the server still says before it closes the connection."""
    received = b""
    with connection:
        while True:
            try:
                piece = connection.recv(1 << 20)
            except ConnectionError:
                return received
            if not piece:
                return received
            received += piece


def test_a_name_is_served_on_its_address(serving: ServeProcess) -> None:
    assert serving.url.startswith("http://127.0.0.1:")


def test_a_host_that_cannot_be_resolved_is_named() -> None:
    from tunery.gateway.sockets import resolve_host

    with pytest.raises(InvalidInput, match=r"the host 'no such host' cannot be resolved .*; set --host to"):
        resolve_host("no such host")


@pytest.mark.parametrize("reset", [False, True])
def test_slots_of_a_client_that_stops_reading_and_closes_are_given_back(serving: ServeProcess, reset: bool) -> None:
    connections = [flood(serving) for _ in range(2)]
    for connection in connections:
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    until(lambda: in_flight(serving) == 0)


def test_a_client_that_only_stops_reading_is_given_up(serving: ServeProcess) -> None:
    connection = flood(serving)
    until(lambda: in_flight(serving) == 0)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        port, gateway = connection.getsockname()[1], psutil.Process(serving.process.pid)
        until(lambda: all(port not in (one.raddr or ())[1:] for one in gateway.net_connections("tcp")))
    assert b"[DONE]" not in ended(connection)


@pytest.mark.parametrize(
    "start", [b"", b"GET /health/live HTT", b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"]
)
def test_a_connection_that_sends_nothing_or_half_a_head_is_closed(serving: ServeProcess, start: bytes) -> None:
    connection = connect(serving)
    connection.sendall(start)
    assert (b" 200 OK" in ended(connection)) == start.endswith(b"\r\n\r\n")


def test_a_body_that_trickles_is_refused(serving: ServeProcess) -> None:
    connection = connect(serving)
    connection.sendall(head("/v1/completions", 1000))
    connection.settimeout(0.2)
    received = b""
    while not received:
        connection.sendall(b" ")
        try:
            received = connection.recv(1000)
        except TimeoutError:
            continue
    assert received.startswith(b"HTTP/1.1 408")
    connection.settimeout(SECONDS)
    received += ended(connection)
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["message"].startswith(
        "the body did not come in time"
    )


def test_more_connections_than_allowed_wait_and_idle_ones_make_room(serving: ServeProcess) -> None:
    idle = [connect(serving) for _ in range(CONNECTIONS)]
    assert httpx.get(f"{serving.url}/health/live", timeout=SECONDS).status_code == 200
    closed = 0
    for connection in idle:
        closed += ended(connection) == b""
    assert closed == CONNECTIONS


HOSTILE = {
    "ids": b'{"model":"base","prompt":[' + b"7," * 5_000_000 + b"7]}",
    "cut": b'{"model":"base","prompt":"' + b"x" * 12_000_000,
    "nested": b'{"model":"base","prompt":' + b"[" * 12_000_000,
    "large": b"x" * 30_000_000,
    "table": b'{"model":"base","prompt":"x","logit_bias":{' + b",".join(b'"%d":1' % n for n in range(500_000)) + b"}}",
    "schema": json.dumps({"model": "base", "prompt": "x", "guided_json": {"enum": list(range(10**6))}}).encode(),
}
"""Each is refused, after much memory for some."""


def test_memory_that_large_bodies_took_is_given_back(serving: ServeProcess) -> None:
    processes = [psutil.Process(pid) for pid in (serving.process.pid, serving.engine)]

    def memory() -> list[int]:
        return [process.memory_info().rss for process in processes]

    with httpx.Client(base_url=serving.url, timeout=SECONDS) as client:
        extra: dict[str, Any]
        for extra in ({}, {"guided_json": {}}, {"logit_bias": {"5": 1}}):
            assert client.post("/v1/completions", json={"model": "base", "prompt": "x", **extra}).status_code == 200
        before = memory()
        for body in HOSTILE.values():
            response = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
            assert response.status_code in (400, 413)
    until(lambda: all(now <= 1.2 * then for now, then in zip(memory(), before, strict=True)))
