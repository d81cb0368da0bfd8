"""When the issuer is asked for its keys, with a source and a clock of the test's own."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.gateway.tenancy.oidc.issuer import private_key
from tunery.gateway.tenancy.oidc.key_set import KeySet, SigningKey
from tunery.gateway.tenancy.oidc.signing_keys import SigningKeys
from tunery.registry.errors import Unavailable


def key_set(*names: str) -> KeySet:
    public = private_key("ES256-one").public_key()
    return KeySet([SigningKey(name, ("ES256",), public, name.encode()) for name in names])


class Source:
    """Answers with `keys`, or fails without any; waits until it is `open`."""

    def __init__(self, *names: str) -> None:
        self.names, self.asked, self.closed = names, 0, False
        self.open = asyncio.Event()
        self.open.set()

    async def fetch_keys(self) -> KeySet:
        self.asked += 1
        await self.open.wait()
        if not self.names:
            raise Unavailable("it is down")
        return key_set(*self.names)

    async def close(self) -> None:
        self.closed = True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def signing_keys(source: Source, clock: Clock | None = None, *, refresh: float = 3600) -> SigningKeys:
    return SigningKeys(source, name="i", refresh_seconds=refresh, cooldown_seconds=10, clock=clock or Clock())


async def test_unknown_keys_are_looked_for_once_in_a_cooldown() -> None:
    source, clock = Source("a"), Clock()
    keys = signing_keys(source, clock)
    await keys.start()
    assert await keys.find("a", "ES256") is not None
    assert source.asked == 1
    found = await asyncio.gather(*(keys.find(f"unknown-{number}", "ES256") for number in range(500)))
    assert found == [None] * 500
    assert source.asked == 2
    source.names = ("b",)
    assert await keys.find("b", "ES256") is None, "too early"
    clock.now += 10
    assert await keys.find("b", "ES256") is not None
    assert await keys.find("a", "ES256") is None, "withdrawn"
    assert source.asked == 3
    await keys.stop()
    assert source.closed


async def test_who_waits_for_the_same_answer_asks_once() -> None:
    source = Source("a")
    source.open.clear()
    keys = signing_keys(source)
    await keys.start()
    waiting = [asyncio.create_task(keys.find("a", "ES256")) for _ in range(100)]
    await asyncio.sleep(0.01)
    source.open.set()
    assert all(await asyncio.gather(*waiting))
    assert source.asked == 1
    await keys.stop()


async def test_a_request_waits_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery.gateway.tenancy.oidc.signing_keys.WAIT_SECONDS", 0.01)
    source = Source("a")
    source.open.clear()
    keys = signing_keys(source)
    await keys.start()
    assert await keys.find("a", "ES256") is None
    assert keys.current is None
    await keys.stop()


async def test_known_keys_stay_good_while_the_issuer_is_down(caplog: pytest.LogCaptureFixture) -> None:
    source, clock = Source("a"), Clock()
    keys = signing_keys(source, clock)
    await keys.start()
    assert await keys.find("a", "ES256") is not None
    source.names = ()
    for _ in range(3):
        assert await keys.find("b", "ES256") is None
        clock.now += 10
    assert await keys.find("a", "ES256") is not None
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["the issuer i cannot be asked for its keys, its known keys stay good: it is down"]
    source.names = ("b",)
    assert await keys.find("b", "ES256") is not None
    assert caplog.records[-1].message == "the issuer i answers again"
    await keys.stop()


async def test_an_issuer_that_is_down_at_the_start_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def quick(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0 if len(waits) < 12 else 3600)

    source = Source()
    keys = signing_keys(source)
    monkeypatch.setattr("tunery.gateway.tenancy.oidc.signing_keys.asyncio.sleep", quick)
    await keys.start()
    while len(waits) < 11:
        await sleep(0)
    source.names = ("a",)
    while len(waits) < 12:
        await sleep(0)
    monkeypatch.undo()
    assert keys.current is not None
    for wait, wanted in zip(waits, (1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 3600), strict=True):
        assert 0.9 * wanted <= wait <= wanted
    await keys.stop()
