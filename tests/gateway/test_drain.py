"""Gateways are replaced one after the other behind a load balancer, and no request is lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.gateway.fake_server import FakeServer, fake_server, free_ports
from tests.registry.artifacts import make_base
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.home import Home
from tunery.registry.registry import Registry

pytestmark = pytest.mark.slow

PROBE_EVERY = 0.2


@dataclass
class Proxy:
    """A round-robin load balancer for connections, to the servers that were ready when it last asked. It retries
    nothing."""

    ports: list[int]
    ready: set[int] = field(default_factory=set)
    turn: int = 0
    port: int = 0

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Balance while the context lasts."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        probing = asyncio.create_task(self._probe())
        try:
            yield
        finally:
            probing.cancel()
            server.close()
            await asyncio.gather(probing, return_exceptions=True)

    async def wait_ready(self, ports: set[int]) -> None:
        """Wait until these have been seen ready."""
        async with asyncio.timeout(60):
            while not ports <= self.ready:
                await asyncio.sleep(0.05)

    async def _probe(self) -> None:
        async with httpx.AsyncClient(verify=False, headers={"connection": "close"}) as client:
            while True:
                for port in self.ports:
                    try:
                        answer = await client.get(f"http://127.0.0.1:{port}/health/ready")
                        ready = answer.status_code == 200
                    except httpx.TransportError:
                        ready = False
                    (self.ready.add if ready else self.ready.discard)(port)
                await asyncio.sleep(PROBE_EVERY)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready = [port for port in self.ports if port in self.ready]
        self.turn += 1
        try:
            backend = await asyncio.open_connection("127.0.0.1", ready[self.turn % len(ready)])
        except (OSError, ZeroDivisionError):
            writer.close()
            return
        await asyncio.gather(_pipe(reader, backend[1]), _pipe(backend[0], writer))


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass
class Load:
    """Clients that ask all the time, over connections that they keep; half of what they ask for are streams."""

    url: str
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    stopping: bool = False

    async def client(self, number: int) -> None:
        """One client."""
        async with httpx.AsyncClient(verify=False, timeout=60) as client:
            while not self.stopping:
                number += 1
                try:
                    await self._ask(client, stream=number % 2 == 0)
                except (httpx.HTTPError, AssertionError) as error:
                    self.failures.append(repr(error))

    async def _ask(self, client: httpx.AsyncClient, *, stream: bool) -> None:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 12, "stream": stream}
        answer = await client.post(f"{self.url}/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        if stream:
            assert answer.text.endswith("data: [DONE]\n\n"), answer.text
            assert '"error"' not in answer.text, answer.text
            assert '"finish_reason":"length"' in answer.text, answer.text
        else:
            assert answer.json()["usage"]["completion_tokens"] == 12
        self.answered += 1


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drain")
    with Registry.open(Home(folder / "home")) as registry:
        registry.add_base(make_base(folder / "base"))
    return folder


@pytest.fixture
def two(shared: Path, tiny_base_folder: Path) -> Iterator[list[FakeServer]]:
    with contextlib.ExitStack() as running:
        yield [running.enter_context(start(shared, tiny_base_folder, port)) for port in free_ports(2)]


def start(shared: Path, tokenizer: Path, port: int) -> contextlib.AbstractContextManager[FakeServer]:
    settings = ServeSettings(base="tiny", auth=False, port=port, drain_delay=1, drain_seconds=30)
    log = shared / f"log-{port}"
    log.write_text("")
    return fake_server(Home(shared / "home"), tokenizer, settings, log=log)


async def test_no_request_is_lost_while_two_gateways_are_replaced(
    two: list[FakeServer], shared: Path, tiny_base_folder: Path
) -> None:
    ports = [int(server.url.rpartition(":")[2]) for server in two]
    proxy = Proxy(ports)
    with contextlib.ExitStack() as replaced:
        async with proxy.run():
            await proxy.wait_ready(set(ports))
            load = Load(f"http://127.0.0.1:{proxy.port}")
            clients = [asyncio.create_task(load.client(number)) for number in range(5)]
            for server, port in zip(two, ports, strict=True):
                await asyncio.sleep(0.5)
                assert await asyncio.to_thread(server.stop, signal.SIGTERM) == 0, server.log.read_text()
                proxy.ready.discard(port)
                await asyncio.to_thread(replaced.enter_context, start(shared, tiny_base_folder, port))
                await proxy.wait_ready({port})
            load.stopping = True
            await asyncio.gather(*clients)
    assert load.failures == []
    assert load.answered > 50
