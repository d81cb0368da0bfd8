"""Frames over a real socket, and a client whose engine misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter
from tunery.gateway.engine.ipc.client import EngineClient
from tunery.gateway.engine.ipc.wire import MAX_FRAME, CommandReader, EventWriter, read_event, write_command
from tunery.gateway.engine.messages import (
    Cancel,
    Command,
    Embed,
    Event,
    Failed,
    Generate,
    Load,
    Shutdown,
    Token,
    Tokens,
    TopToken,
    Unload,
)
from tunery.gateway.engine.sampling_params import SamplingParams
from tunery.registry.errors import InvalidInput, Unavailable

IDS = st.text(max_size=40)
TOKENS = st.integers(0, 2**31 - 1)
SOURCES = st.builds(
    AdapterSource,
    IDS,
    IDS,
    st.integers(1, 2**40),
    st.dictionaries(st.text(max_size=20), st.text(max_size=60), max_size=3),
)
SAMPLINGS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 2**31),
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop_token_ids=st.lists(TOKENS, max_size=4).map(tuple),
    logit_bias=st.dictionaries(TOKENS, st.floats(-100, 100), max_size=3),
    logprobs=st.none() | st.integers(0, 20),
)
COMPOSITIONS = st.lists(st.builds(WeightedAdapter, SOURCES, st.floats(-10, 10)), max_size=3).map(tuple)
COMMANDS = st.one_of(
    st.builds(
        Generate,
        id=IDS,
        prompt=st.lists(TOKENS, max_size=50).map(tuple),
        sampling=SAMPLINGS,
        composition=COMPOSITIONS,
        tenant=IDS,
    ),
    st.builds(
        Embed,
        id=IDS,
        prompt=st.lists(TOKENS, max_size=50).map(tuple),
        pooling=st.sampled_from(["mean", "last"]),
        composition=COMPOSITIONS,
    ),
    st.builds(Cancel, IDS),
    st.builds(Load, IDS, SOURCES, st.booleans()),
    st.builds(Unload, IDS, IDS),
    st.just(Shutdown()),
)
EVENTS = st.one_of(
    st.builds(
        Tokens,
        st.lists(
            st.builds(
                Token,
                IDS,
                TOKENS,
                st.floats(allow_nan=False),
                st.none() | st.sampled_from(["stop", "length"]),
                st.lists(st.builds(TopToken, TOKENS, st.floats(allow_nan=False)), max_size=3).map(tuple),
            ),
            max_size=5,
        ),
    ),
    st.builds(Failed, IDS, IDS, st.text(max_size=200)),
)
# Each example makes sockets of its own, so the fixture being shared does no harm.
REAL_SOCKETS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class ConnectedPair:
    """Both ends of one connection: the engine's blocking one and the gateway's streams."""

    def __init__(self, engine: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.engine, self.reader, self.writer = engine, reader, writer


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[ConnectedPair]:
    engine, gateway = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=gateway)
    try:
        yield ConnectedPair(engine, reader, writer)
    finally:
        writer.close()
        engine.close()


@REAL_SOCKETS
@given(commands=st.lists(COMMANDS, max_size=6))
async def test_every_command_arrives_as_it_was_sent(commands: list[Command]) -> None:
    async with connected() as ends:
        for command in commands:
            write_command(ends.writer, command)
        await ends.writer.drain()
        ends.writer.close()
        reader = CommandReader(ends.engine)
        assert [await asyncio.to_thread(reader.read) for _ in commands] == commands
        assert await asyncio.to_thread(reader.read) is None


@REAL_SOCKETS
@given(events=st.lists(EVENTS, max_size=6))
async def test_every_event_arrives_as_it_was_sent(events: list[Event]) -> None:
    async with connected() as ends:
        writer, decoder = EventWriter(ends.engine), msgspec.msgpack.Decoder(Event)

        def send() -> None:
            for event in events:
                writer.write(event)
            ends.engine.close()

        sending = threading.Thread(target=send)
        sending.start()
        assert [await read_event(ends.reader, decoder) for _ in events] == events
        assert await read_event(ends.reader, decoder) is None
        sending.join()


async def test_a_frame_cut_short_is_the_end() -> None:
    async with connected() as ends:
        ends.engine.sendall(struct.pack("<I", 100) + b"half")
        ends.engine.close()
        assert await read_event(ends.reader, msgspec.msgpack.Decoder(Event)) is None


async def test_a_frame_that_cannot_be_is_refused_before_it_is_read() -> None:
    async with connected() as ends:
        ends.engine.sendall(struct.pack("<I", MAX_FRAME + 1))
        with pytest.raises(Unavailable, match="the limit is"):
            await read_event(ends.reader, msgspec.msgpack.Decoder(Event))


def request(name: str) -> Generate:
    return Generate(id=name, prompt=(1, 2), sampling=SamplingParams(max_tokens=5))


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[tuple[EngineClient, CommandReader, EventWriter, socket.socket]]:
    """A listening client, and the engine's side of it."""
    async with connected() as ends:
        made = EngineClient(ends.reader, ends.writer)
        listening = asyncio.create_task(made.listen(lambda ready: None, lambda stats: None))
        yield made, CommandReader(ends.engine), EventWriter(ends.engine), ends.engine
        ends.engine.close()
        await asyncio.wait_for(listening, 5)


async def test_answers_are_matched_by_id_and_unknown_ids_ignored() -> None:
    async with client() as (made, _, writer, _):
        first, second = made.generate(request("a")), made.generate(request("b"))
        waiting = [asyncio.ensure_future(anext(first)), asyncio.ensure_future(anext(second))]
        await asyncio.sleep(0.01)
        writer.write(Tokens([Token("stranger", 9, 0.0), Token("b", 2, 0.0, "stop"), Token("a", 1, 0.0, "length")]))
        assert [token.token for token in await asyncio.gather(*waiting)] == [1, 2]
        assert [token async for token in first] == []


async def test_closing_the_iterator_cancels_and_an_ended_one_does_not() -> None:
    async with client() as (made, reader, writer, _):
        running = made.generate(request("a"))
        waiting = asyncio.ensure_future(anext(running))
        await asyncio.sleep(0.01)
        writer.write(Tokens([Token("a", 1, 0.0)]))
        await waiting
        await running.aclose()
        over = made.generate(request("b"))
        waiting = asyncio.ensure_future(anext(over))
        await asyncio.sleep(0.01)
        writer.write(Tokens([Token("b", 1, 0.0, "stop")]))
        await waiting
        await over.aclose()
        made.shut_down()
        messages = [await asyncio.to_thread(reader.read) for _ in range(4)]
        assert messages == [request("a"), Cancel("a"), request("b"), Shutdown()]


async def test_a_failure_is_raised_as_what_it_is() -> None:
    async with client() as (made, _, writer, _):
        waiting = asyncio.ensure_future(anext(made.generate(request("a"))))
        await asyncio.sleep(0.01)
        writer.write(Failed("a", "context_length_exceeded", "too long"))
        with pytest.raises(InvalidInput, match="too long") as caught:
            await waiting
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("garbage", [b"\x05\x00\x00\x00hello", b"\xff\xff\xff\xff", b"\x01\x00\x00\x00\xc1"])
async def test_garbage_fails_everybody_and_ends_the_connection(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with client() as (made, reader, _, engine):
        waiting = [
            asyncio.ensure_future(anext(made.generate(request("a")))),
            asyncio.ensure_future(made.load(AdapterSource("d", "a/b", 1, {}))),
        ]
        await asyncio.sleep(0.01)
        await asyncio.to_thread(engine.sendall, garbage)
        for one in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(one, Unavailable)
        assert await asyncio.to_thread(lambda: [reader.read() for _ in range(3)][-1]) is None
        with pytest.raises(Unavailable):
            await made.unload("d")
    assert "not an event" in caplog.text


def test_a_command_reader_without_a_gateway_ends(tmp_path: Path) -> None:
    engine, gateway = socket.socketpair()
    gateway.close()
    assert CommandReader(engine).read() is None
    engine.close()
