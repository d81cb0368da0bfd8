"""Several gateways on one engine: each gets what it asked for, and none holds up the others."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.gateway.engine.ipc.scripted_engine import STATS, TALKATIVE
from tests.gateway.engine.ipc.test_supervisor import COMMAND, config, request
from tunery.gateway.engine.ipc import wire
from tunery.gateway.engine.ipc.attached_engine import AttachedEngine
from tunery.gateway.engine.ipc.connected_engine import ConnectedEngine
from tunery.gateway.engine.ipc.connections import Connections
from tunery.gateway.engine.ipc.supervisor import SupervisedEngine
from tunery.gateway.engine.messages import Cancel, Command, Event, Failed, Generate, Shutdown, Token, Tokens
from tunery.registry.errors import Unavailable


class Peer:
    """A gateway's end of a connection, written by hand."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.connection.settimeout(30)

    def send(self, command: Command) -> None:
        body = msgspec.msgpack.encode(command)
        self.connection.sendall(len(body).to_bytes(4, "little") + body)

    def receive(self) -> Event:
        length = int.from_bytes(self._exactly(4), "little")
        event: Event = msgspec.msgpack.decode(self._exactly(length), type=Event)
        return event

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self.connection.recv(count - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)


class Shared:
    """An engine's connections, with the process that started it at the other end of `starter`."""

    def __init__(self, folder: Path) -> None:
        mine, its = socket.socketpair()
        self.path = str(folder / "attach.sock")
        self.connections, self.starter = Connections(mine), Peer(its)
        self.connections.accept_on(self.path)
        self.connections.start()
        self.peers: list[Peer] = []

    def attach(self) -> Peer:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self.path)
        peer = Peer(connection)
        self.peers.append(peer)
        return peer

    def next(self) -> Command | None:
        return self.connections.commands.get(timeout=30)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    shared = Shared(tmp_path)
    yield shared
    for peer in (*shared.peers, shared.starter):
        peer.connection.close()


def ask(peer: Peer, shared: Shared, name: str) -> None:
    peer.send(request(name, 3))
    command = shared.next()
    assert isinstance(command, Generate)
    assert command.id == name


def token(name: str, *, last: bool = False) -> Token:
    return Token(name, 7, -1.0, "length" if last else None)


def test_each_gateway_gets_the_tokens_of_its_own_requests(shared: Shared) -> None:
    first, second = shared.attach(), shared.attach()
    ask(first, shared, "a")
    ask(second, shared, "b")
    ask(shared.starter, shared, "c")
    shared.connections.emit(Tokens([token("a"), token("b"), token("c"), token("unknown")]))
    assert first.receive() == Tokens([token("a")])
    assert second.receive() == Tokens([token("b")])
    assert shared.starter.receive() == Tokens([token("c")])
    shared.connections.emit(Failed("b", "overloaded", "too much"))
    assert second.receive() == Failed("b", "overloaded", "too much")
    shared.connections.emit(STATS)
    assert {repr(peer.receive()) for peer in (first, second, shared.starter)} == {repr(STATS)}


def test_one_that_attaches_later_gets_the_state_at_once(shared: Shared) -> None:
    shared.connections.emit(STATS)
    assert shared.attach().receive() == STATS


def test_requests_of_a_gateway_that_has_gone_are_cancelled(shared: Shared) -> None:
    gone, left = shared.attach(), shared.attach()
    ask(gone, shared, "a")
    ask(gone, shared, "done")
    ask(left, shared, "b")
    shared.connections.emit(Tokens([token("done", last=True)]))
    gone.connection.close()
    assert shared.next() == Cancel("a")
    assert shared.connections.commands.empty()
    shared.connections.emit(Tokens([token("a"), token("b")]))
    assert left.receive() == Tokens([token("b")])


def test_only_the_starter_ends_the_engine(shared: Shared) -> None:
    other = shared.attach()
    other.send(Shutdown())
    ask(other, shared, "a")
    shared.starter.send(Shutdown())
    assert shared.next() == Shutdown()
    shared.starter.connection.close()
    assert shared.next() is None


def test_a_gateway_that_does_not_read_holds_up_nobody(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_BACKLOG", 2**16)
    stuck, other = shared.attach(), shared.attach()
    ask(stuck, shared, "a")
    ask(other, shared, "b")
    for _ in range(50_000):
        shared.connections.emit(Tokens([token("a")]))
    assert shared.next() == Cancel("a")
    shared.connections.emit(Tokens([token("a"), token("b")]))
    assert other.receive() == Tokens([token("b")])


# -- engines of several processes --------------------------------------------------------------------------------------


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[tuple[SupervisedEngine, AttachedEngine, AttachedEngine]]:
    path = tmp_path / "attach.sock"
    supervised = SupervisedEngine(config(), command=COMMAND, attach=path)
    attached = AttachedEngine(path), AttachedEngine(path)
    for engine in (supervised, *attached):
        await engine.start()
    for engine in (supervised, *attached):
        await asyncio.wait_for(engine.wait_ready(), 60)
    yield supervised, *attached
    for engine in (*attached, supervised):
        await engine.stop()


async def test_attached_engines_answer_like_their_own(
    engines: tuple[SupervisedEngine, AttachedEngine, AttachedEngine],
) -> None:
    async def run(engine: ConnectedEngine, name: str, length: int) -> list[int]:
        return [token.token async for token in engine.generate(request(name, length))]

    answers = await asyncio.gather(*(run(engine, f"r{at}", at + 2) for at, engine in enumerate(engines)))
    assert list(answers) == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]
    await run(engines[1], TALKATIVE, 1)
    assert all(engine.stats == STATS for engine in engines)


async def test_attached_engines_come_back_with_the_next_process(
    engines: tuple[SupervisedEngine, AttachedEngine, AttachedEngine],
) -> None:
    supervised, begun, waiting = engines
    tokens = begun.generate(request("long", 1000))
    assert (await anext(tokens)).token == 0
    second = asyncio.create_task(anext(waiting.generate(request("behind", 2))))
    await asyncio.sleep(0.1)
    assert supervised.pid is not None
    os.kill(supervised.pid, signal.SIGKILL)
    with pytest.raises(Unavailable, match="send it again"):
        async for _ in tokens:
            pass
    # It had no token yet, so it goes to the next engine.
    assert (await asyncio.wait_for(second, 60)).token == 0
    assert begun.restarts == waiting.restarts == 1
    assert (await asyncio.wait_for(begun.wait_ready(), 60)).base == "tiny"


async def test_no_engine_to_attach_to_is_said(tmp_path: Path) -> None:
    from tunery.gateway.engine.ipc.heartbeat import EngineTimeouts

    engine = AttachedEngine(tmp_path / "nowhere.sock", timeouts=EngineTimeouts(hold=0.1))
    await engine.start()
    with pytest.raises(Unavailable, match="starting") as raised:
        await anext(engine.generate(request("a", 1)))
    assert raised.value.retry_after
    await engine.stop()
