"""What the client makes of answers other than tokens: vectors, pins, and errors by their codes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter
from tunery.gateway.engine.ipc.client import MAX_QUEUED_TOKENS, EngineClient
from tunery.gateway.engine.ipc.wire import CommandReader, EventWriter
from tunery.gateway.engine.messages import (
    Cancel,
    Command,
    Embed,
    Embedded,
    Failed,
    Generate,
    Load,
    Loaded,
    Token,
    Tokens,
)
from tunery.gateway.engine.sampling_params import SamplingParams
from tunery.registry.errors import ArtifactRefused, InvalidInput, Overloaded, TuneryError, Unavailable

SOURCE = AdapterSource("d", "acme/tone", 1, {})
EMBED = Embed(id="e", prompt=(1, 2), composition=(WeightedAdapter(SOURCE, 0.5),), tenant="acme")


@dataclass
class Pair:
    """A listening client, and the engine at the other end."""

    client: EngineClient
    engine: socket.socket

    async def asked(self) -> Command | None:
        return await asyncio.to_thread(CommandReader(self.engine).read)

    def answer(self, event: Embedded | Failed | Loaded | Tokens) -> None:
        EventWriter(self.engine).write(event)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    client = EngineClient(reader, writer)
    listening = asyncio.create_task(client.listen(lambda ready: None, lambda stats: None))
    yield Pair(client, theirs)
    theirs.close()
    await asyncio.wait_for(listening, 5)
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_a_vector_comes_back_to_its_request(pair: Pair) -> None:
    asking = asyncio.create_task(pair.client.embed(EMBED))
    assert await pair.asked() == EMBED
    pair.answer(Embedded("somebody else", [9.0]))
    pair.answer(Embedded("e", [1.0, 2.0]))
    assert (await asking).vector == [1.0, 2.0]


async def test_giving_up_on_a_vector_cancels_it(pair: Pair) -> None:
    asking = asyncio.create_task(pair.client.embed(EMBED))
    assert await pair.asked() == EMBED
    asking.cancel()
    assert await pair.asked() == Cancel("e")


async def test_an_engine_that_dies_ends_the_wait_for_a_vector(pair: Pair) -> None:
    asking = asyncio.create_task(pair.client.embed(EMBED))
    await pair.asked()
    pair.engine.close()
    with pytest.raises(Unavailable) as caught:
        await asking
    assert caught.value.code == "engine_restarted"
    with pytest.raises(Unavailable):
        await pair.client.embed(EMBED)


async def test_a_pin_is_passed_on(pair: Pair) -> None:
    loading = asyncio.create_task(pair.client.load(SOURCE, pin=True))
    command = await pair.asked()
    assert isinstance(command, Load)
    assert (command.adapter, command.pin) == (SOURCE, True)
    pair.answer(Loaded(command.id, "d", 7))
    assert (await loading).bytes == 7


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_constraint", InvalidInput),
        ("unsupported_composition", InvalidInput),
        ("overloaded", Overloaded),
        ("artifact_nonfinite", ArtifactRefused),
        ("something_new", Unavailable),
    ],
)
async def test_a_refusal_is_raised_as_what_it_is(pair: Pair, code: str, kind: type[TuneryError]) -> None:
    request = Generate(id="g", prompt=(1,), sampling=SamplingParams(max_tokens=1))
    asking = asyncio.ensure_future(anext(pair.client.generate(request)))
    assert await pair.asked() == request
    pair.answer(Failed("g", code, "no"))
    with pytest.raises(kind, match="no") as caught:
        await asking
    assert caught.value.code == code


async def test_tokens_that_nobody_takes_end_their_request_and_no_other(pair: Pair) -> None:
    slow, quick = (
        Generate(id=name, prompt=(1,), sampling=SamplingParams(max_tokens=9999)) for name in ("slow", "quick")
    )
    streams = [pair.client.generate(request) for request in (slow, quick)]
    firsts = [asyncio.ensure_future(anext(stream)) for stream in streams]
    assert [await pair.asked(), await pair.asked()] == [slow, quick]
    for number in range(MAX_QUEUED_TOKENS + 2):
        pair.answer(Tokens([Token("slow", number, 0.0), Token("quick", number, 0.0)]))
        assert (await (firsts[1] if number == 0 else anext(streams[1]))).token == number
    assert await pair.asked() == Cancel("slow")
    taken = [await firsts[0]] + [await anext(streams[0]) for _ in range(MAX_QUEUED_TOKENS)]
    assert [token.token for token in taken] == list(range(MAX_QUEUED_TOKENS + 1)), "the first was taken"
    with pytest.raises(Overloaded, match="wait to be read") as caught:
        await anext(streams[0])
    assert caught.value.code == "client_too_slow"
    await streams[1].aclose()
    assert await pair.asked() == Cancel("quick")
