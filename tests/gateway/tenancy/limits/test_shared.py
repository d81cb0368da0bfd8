"""Counters that several gateways share: together they admit the limit, and alone each its own when nobody answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import func, select

from tunery.gateway.tenancy.limits import shared
from tunery.gateway.tenancy.limits.interface import Shortage, Taken, Want
from tunery.gateway.tenancy.limits.shared import SharedCounters
from tunery.registry.errors import StorageFailed
from tunery.registry.home import Home
from tunery.registry.limits.counters import Exchange, Exchanged, LimitCounters
from tunery.registry.limits.window import SLOT_SECONDS
from tunery.registry.registry import Registry
from tunery.registry.storage import tenant_tables


class Shop:
    """The database with a clock that is set by hand, and that can be made to fail or to wait."""

    def __init__(self, counters: LimitCounters) -> None:
        self.counters, self.time, self.failing, self.seconds, self.exchanges = counters, 1000.0, False, 0.0, 0
        self.flows = False

    def now(self) -> float:
        return self.time + (time.monotonic() if self.flows else 0)

    def exchange(self, asked: Exchange) -> Exchanged:
        self.exchanges += 1
        time.sleep(self.seconds)
        if self.failing:
            raise StorageFailed("the disk is full")
        return self.counters.exchange(asked)


@asynccontextmanager
async def gateways(shop: Shop, count: int = 2) -> AsyncIterator[list[SharedCounters]]:
    made = [SharedCounters(shop) for _ in range(count)]
    for each in made:
        await each.start()
    try:
        yield made
    finally:
        for each in made:
            await each.stop()


def requests(amount: int = 1, limit: int = 32, *, subject: str = "tenant:acme") -> list[Want]:
    return [Want(subject, "requests", amount, limit)]


def places(limit: int = 6) -> list[Want]:
    return [Want("tenant:acme", "concurrent", 1, limit)]


def taken(results: Sequence[list[Taken] | Shortage]) -> list[Taken]:
    return [each for result in results if not isinstance(result, Shortage) for each in result]


async def test_together_they_admit_the_limit_and_each_gets_some(registry: Registry) -> None:
    shop = Shop(registry.limit_counters)
    async with gateways(shop) as both:
        results = await asyncio.gather(*(both[number % 2].take(requests()) for number in range(100)))
        assert len(taken(results)) == 32
        refusal = next(each for each in results if isinstance(each, Shortage))
        assert refusal.seconds == 65
        assert both[0].standing("tenant:acme", "requests", 32).remaining == 0
        # Each exchange answered many.
        assert shop.exchanges < 30
        shop.time += 65
        again = await asyncio.gather(*(both[number % 2].take(requests()) for number in range(100)))
        assert len(taken(again)) == 32


async def test_most_requests_ask_nobody(registry: Registry) -> None:
    shop = Shop(registry.limit_counters)
    async with gateways(shop, 1) as (one,):
        for _ in range(64):
            assert taken([await one.take(requests(limit=1600))])
        assert shop.exchanges <= 2


async def test_what_is_not_used_goes_back_when_its_slot_is_over(registry: Registry) -> None:
    shop = Shop(registry.limit_counters)
    async with gateways(shop) as (one, other):
        (got,) = taken([await one.take(requests(20))])
        assert isinstance(await other.take(requests(20)), Shortage)
        one.give_back(got, 15)
        shop.time += SLOT_SECONDS
        # The first has 5 and nothing that it could still use; the second takes all the rest.
        await until(lambda: registry_used(registry) == 5)
        assert taken([await other.take(requests(27))])
        assert registry_used(registry) == 32


async def test_concurrent_requests_are_held_by_all_together(registry: Registry) -> None:
    shop = Shop(registry.limit_counters)
    shop.flows = True
    async with gateways(shop) as (one, other):
        mine = taken(await asyncio.gather(*(one.take(places()) for _ in range(4))))
        theirs = taken(await asyncio.gather(*(other.take(places()) for _ in range(4))))
        assert (len(mine), len(theirs)) == (4, 2)
        for each in mine:
            one.give_back(each, 1)
        async with asyncio.timeout(60):
            while len(theirs) < 6:
                theirs += taken([await other.take(places())])
                await asyncio.sleep(0.02)
        assert isinstance(await one.take(places()), Shortage)


async def test_nobody_waits_for_a_database_that_does_not_answer(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(registry.limit_counters)
    async with gateways(shop) as both:
        shop.failing = True
        results = await asyncio.gather(*(both[number % 2].take(requests() + places(40)) for number in range(100)))
        # Each counts for itself.
        assert len(taken(results)) == 2 * 2 * 32
        for result in results:
            for each in taken([result]):
                assert each.alone
        shop.failing = False
        monkeypatch.setattr(shared, "WAIT_SECONDS", 0.05)
        await until(lambda: not both[0]._alone)
        shop.seconds = 1.0
        assert taken([await both[0].take(requests(subject="tenant:globex"))])[0].alone
        shop.seconds = 0.0


async def test_whoever_leaves_while_asking_takes_nothing(registry: Registry) -> None:
    shop = Shop(registry.limit_counters)
    async with gateways(shop, 1) as (one,):
        shop.seconds = 0.2
        asking = [asyncio.create_task(one.take(places() + requests(4))) for _ in range(3)]
        await asyncio.sleep(0.05)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        shop.seconds = 0.0
        assert len(taken(await asyncio.gather(*(one.take(places()) for _ in range(7))))) == 6


async def test_two_registries_of_one_home_count_together(home: Home, registry: Registry) -> None:
    with Registry.open(home) as second:
        one, other = SharedCounters(registry.limit_counters), SharedCounters(second.limit_counters)
        for each in (one, other):
            await each.start()
        results = await asyncio.gather(*(each.take(requests()) for each in (one, other) for _ in range(40)))
        assert len(taken(results)) == 32
        for each in (one, other):
            await each.stop()


def registry_used(registry: Registry) -> int:
    with registry._database.read() as connection:
        return connection.scalar(select(func.coalesce(func.sum(tenant_tables.limit_counters.c.used), 0))) or 0


async def until(done: object) -> None:
    assert callable(done)
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.02)
