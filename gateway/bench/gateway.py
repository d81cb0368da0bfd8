"""Measure the gateway by itself, in front of the fake engine: latency at a steady rate, requests and tokens a second.

The gateway has one core to itself where the machine has two, and the clients the others. Latencies are those of an open
loop: a request is sent when its time has come, whatever became of those before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec

from tunery.gateway.bench.fake_gateway import FakeGateway
from tunery.gateway.bench.suite import Row
from tunery.registry import Base
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import Unavailable
from tunery.registry.home import Home
from tunery.registry.keys.api_key import SCOPES, new_key
from tunery.registry.registry import Registry

__all__ = ["measure_gateway"]

RATE, SECONDS = 200, 10.0
CONNECTIONS = 32
TOKENS = 16
STREAM_TOKENS = 200

Sent = tuple[int, bytes]
"""A status and a body."""


class Connection:
    """A connection of HTTP/1.1 that is kept, and no more of a client than the measurement needs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, request: bytes) -> Sent:
        """Send a request, and read its whole answer."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                return status, await self._reader.readexactly(int(value))
        return status, await self._chunks()

    async def _chunks(self) -> bytes:
        body = bytearray()
        while size := int(await self._reader.readline(), 16):
            body += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return bytes(body)

    def close(self) -> None:
        """Close it."""
        self._writer.close()


def measure_gateway(base: Base, say: Callable[[str], None]) -> list[Row]:
    """Latency at RATE requests a second, requests a second of a core, and tokens a second of a core over streams."""
    with fake_gateway(base) as (port, token):
        rows = asyncio.run(_measure(port, token, base.name))
    for row in rows:
        say(f"{row.title}: {row.value} {row.unit}")
    return rows


@contextmanager
def fake_gateway(base: Base, *, delay: float = 0.0) -> Iterator[tuple[int, str]]:
    """The port and a key of a gateway process."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        with Registry.open(Home(Path(folder))) as registry:
            registry.add_base(base)
        key, token = new_key(tenant="bench", scopes=SCOPES, created_at=time.time(), created_by="bench")
        settings = ServeSettings(base=base.name, port=0, max_waiting=100_000, drain_delay=0, worker=False)
        alone = (cores[0],) if len(cores) > 1 else ()
        spec = FakeGateway(home=folder, base=base, key=key, settings=settings, delay=delay, cores=alone)
        command = [sys.executable, "-m", "tunery.gateway.bench.fake_gateway", msgspec.json.encode(spec).decode()]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            if alone:
                os.sched_setaffinity(0, cores[1:])
            try:
                for line in process.stderr or ():
                    if line.startswith("ready: "):
                        yield int(line.split()[1].rpartition(":")[2]), token
                        return
                raise Unavailable(f"the gateway ended with exit code {process.wait()}")
            finally:
                os.sched_setaffinity(0, cores)
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                process.kill()


async def _measure(port: int, token: str, model: str) -> list[Row]:
    request = _request(token, model, max_tokens=TOKENS)
    async with _connections(port) as connections:
        await _closed_loop(connections, request, 1.0)  # what is only done once
        latencies = await _open_loop(connections, request)
        done = await _closed_loop(connections, request, SECONDS)
        streams = _request(token, model, max_tokens=STREAM_TOKENS, stream=True)
        streamed = await _closed_loop(connections, streams, SECONDS)
    cut = statistics.quantiles(latencies, n=100)
    return [
        Row(
            name="gateway_p50",
            title=f"gateway, median of a request at {RATE} a second",
            value=round(1000 * statistics.median(latencies), 2),
            unit="ms",
        ),
        Row(
            name="gateway_p99",
            title=f"gateway, 99th percentile at {RATE} a second",
            value=round(1000 * cut[98], 2),
            unit="ms",
        ),
        Row(
            name="gateway_requests",
            title=f"gateway, requests a second over {CONNECTIONS} connections, on one core",
            value=round(done / SECONDS),
            unit="req/s",
        ),
        Row(
            name="gateway_tokens",
            title=f"gateway, tokens a second over {CONNECTIONS} streams, on one core",
            value=round(streamed * STREAM_TOKENS / SECONDS),
            unit="tok/s",
        ),
    ]


def _request(token: str, model: str, **more: object) -> bytes:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "What comes next?"}], **more}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {token}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def _connections(port: int) -> AsyncIterator[list[Connection]]:
    connections = [Connection(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(CONNECTIONS)]
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


async def _open_loop(connections: Sequence[Connection], request: bytes) -> list[float]:
    """Seconds from when each request was due to its last byte."""
    free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    for connection in connections:
        free.put_nowait(connection)
    latencies: list[float] = []
    began = time.perf_counter()

    async def one(due: float) -> None:
        connection = await free.get()
        _check(await connection.ask(request))
        latencies.append(time.perf_counter() - due)
        free.put_nowait(connection)

    asking = []
    for number in range(int(RATE * SECONDS)):
        due = began + number / RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asking.append(asyncio.create_task(one(due)))
    await asyncio.gather(*asking)
    return latencies


async def _closed_loop(connections: Sequence[Connection], request: bytes, seconds: float) -> int:
    """How many requests were answered while every connection always had one."""
    end = time.perf_counter() + seconds
    done = 0

    async def repeat(connection: Connection) -> None:
        nonlocal done
        while time.perf_counter() < end:
            _check(await connection.ask(request))
            done += 1

    await asyncio.gather(*map(repeat, connections))
    return done


def _check(sent: Sent) -> None:
    status, body = sent
    if status != 200:
        raise Unavailable(f"the gateway answered {status}: {body[:200].decode(errors='replace')}")
