"""The gateway measured by itself, for moments only: what is measured is real, and nothing is asserted of how fast it is."""

from __future__ import annotations

import concurrent.futures
import socket
from pathlib import Path

import pytest

from tunery.gateway.bench import gateway
from tunery.gateway.bench.load import LoadGenerator
from tunery.gateway.bench.report import judge, rows_table
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.registry.errors import Unavailable
from tunery.registry.registry import Registry

pytestmark = pytest.mark.slow


def test_the_gateway_is_measured_in_front_of_the_fake_engine(
    registry: Registry, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"RATE": 20, "SECONDS": 0.5, "CONNECTIONS": 4, "STREAM_TOKENS": 20, "LONG_TOKENS": 8, "ROUNDS": 1}
    for name, value in few.items():
        monkeypatch.setattr(gateway, name, value)
    base = resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins())
    said: list[str] = []
    rows = gateway.measure_gateway(base, said.append)
    names = ["p50", "p99", "requests", "tokens", "streaming"]
    assert [row.name for row in rows] == [f"gateway_{name}" for name in names]
    assert all(row.value > 0 for row in rows)
    assert rows[0].value <= rows[1].value
    assert len(said) == len(rows) + 1
    assert {bar.title for bar in judge(rows, [])} == {row.title for row in rows if row.name != "gateway_tokens"}
    assert "req/s" in rows_table(rows)


def test_an_answer_that_is_no_success_ends_the_measurement() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}")

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answering = pool.submit(answer)
            with LoadGenerator(listener.getsockname()[1], 1) as load, pytest.raises(Unavailable, match="429"):
                load.open_loop(b"GET / HTTP/1.1\r\n\r\n", rate=10, seconds=1)
            answering.result()
