"""The counters in Redis, which say what those in the database say."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer

from tunery.gateway.tenancy.limits.interface import Shortage, Want
from tunery.gateway.tenancy.limits.redis_counters import RedisCounters
from tunery.gateway.tenancy.limits.shared import SharedCounters
from tunery.gateway.tenancy.limits.stores import open_counters
from tunery.registry.configuration.limits import LimitsSettings
from tunery.registry.errors import InvalidInput
from tunery.registry.limits.counters import HOLD_SECONDS, Claim, Exchange, Hold, Return
from tunery.registry.registry import Registry

ACME = "tenant:acme"


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def counters(server: FakeServer) -> RedisCounters:
    made = RedisCounters("", client=FakeRedis(server=server))
    made.exchange(Exchange(owner="a", now=0))
    return made


def test_they_answer_as_the_database_does(counters: RedisCounters, registry: Registry) -> None:
    steps: list[dict[str, Any]] = [
        {"now": 1000, "claims": [Claim(ACME, "requests", 10, 60, 100), Claim(ACME, "tokens", 1, 3, 4)]},
        {"now": 1006, "claims": [Claim(ACME, "requests", 10, 60, 100)]},
        {"now": 1007, "claims": [Claim(ACME, "requests", 1, 1, 100)], "returns": [Return(ACME, "requests", 201, 7)]},
        {"now": 1007, "claims": [Claim(ACME, "requests", 7, 9, 100), Claim(ACME, "tokens", 2, 3, 4)]},
        {"now": 1065, "claims": [Claim(ACME, "requests", 1, 99, 100)], "returns": [Return(ACME, "requests", 1, 7)]},
        {"now": 3, "claims": [Claim(ACME, "requests", 1, 100, 100)]},
        {"now": 0, "holds": [Hold(ACME, 1, 4, 10)]},
        {"now": 1, "holds": [Hold(ACME, 1, 8, 10)], "owner": "b"},
        {"now": 2, "holds": [Hold(ACME, 7, 9, 10)], "owner": "b"},
        {"now": 3, "holds": [Hold(ACME, 0, 2, 10)]},
        {"now": 4, "holds": [Hold(ACME, 7, 9, 10)], "owner": "b"},
        {"now": 3 + HOLD_SECONDS + 0.1, "holds": [Hold(ACME, 9, 20, 10)], "owner": "b"},
        {"now": 20, "holds": [Hold(ACME, 0, 0, 10)], "owner": "b"},
    ]
    for step in steps:
        asked = Exchange(**{"owner": "a"} | step)
        expected = registry.limit_counters.exchange(asked)
        assert counters.exchange(asked) == expected, step


async def test_two_gateways_admit_the_limit_and_each_its_own_without_redis(server: FakeServer) -> None:
    both = [SharedCounters(RedisCounters("", client=FakeRedis(server=server))) for _ in range(2)]
    for each in both:
        await each.start()
    wants = [Want(ACME, "requests", 1, 32), Want(ACME, "concurrent", 1, 20)]
    results = await asyncio.gather(*(both[number % 2].take(wants) for number in range(80)))
    assert len([result for result in results if not isinstance(result, Shortage)]) == 20
    server.connected = False
    others = [Want("tenant:globex", "requests", 1, 32)]
    alone = await asyncio.gather(*(each.take(others) for each in both for _ in range(40)))
    assert len([result for result in alone if not isinstance(result, Shortage)]) == 64
    for each in both:
        await each.stop()


def test_redis_needs_its_address(registry: Registry) -> None:
    with pytest.raises(InvalidInput, match="redis_url"):
        open_counters(LimitsSettings(store="redis"), registry)
    open_counters(LimitsSettings(store="redis", redis_url="redis://localhost:1/0"), registry)
