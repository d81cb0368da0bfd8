"""The outbox is delivered: retried, given up, and no endpoint waits for another."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator

import pytest

from tests.gateway.webhooks.receiver import LOOPBACK, Receiver, Reply, receiving, until
from tunery.gateway.webhooks.backoff import DELAYS, GIVE_UP_SECONDS
from tunery.gateway.webhooks.delivery import Deliverer, Outcome, WebhookThread
from tunery.gateway.webhooks.sender import Sender
from tunery.registry.configuration.webhooks import EVENT_TYPES, WebhooksSettings
from tunery.registry.home import Home
from tunery.registry.registry import Registry
from tunery.registry.webhooks.events import append


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(home: Home, clock: Clock) -> Iterator[Registry]:
    with Registry.open(home, clock=clock) as registry:
        yield registry


def happen(registry: Registry, number: int = 0, *, at: float = 1_000_000.0) -> None:
    with registry._database.write() as connection:
        append(connection, "tunery.alias.moved", {"number": number}, at=at)


def delivered(registry: Registry, receiver: Receiver, clock: Clock, *, outcomes: list[Outcome]) -> Callable[[], bool]:
    """A function that sends what is due; `outcomes` are added to."""
    registry.webhooks.configure([receiver.url()])

    async def deliver() -> bool:
        async with Sender(receiver.settings()) as sender:
            deliverer = Deliverer(
                registry.webhooks, sender, clock=clock, random=random.Random(0), on_outcome=outcomes.append
            )
            return await deliverer.deliver_next(receiver.endpoint())

    return lambda: asyncio.run(deliver())


def test_errors_are_retried_until_it_is_taken(registry: Registry, receiver: Receiver, clock: Clock) -> None:
    outcomes: list[Outcome] = []
    deliver = delivered(registry, receiver, clock, outcomes=outcomes)
    assert not deliver()
    happen(registry)
    receiver.replies = [Reply(status=500), Reply(status=302), Reply(status=404)]
    for delay in DELAYS[:3]:
        assert deliver()
        assert not deliver()
        clock.now += 1.2 * delay
    assert deliver()
    assert outcomes == ["retried", "retried", "retried", "delivered"]
    clock.now += GIVE_UP_SECONDS
    assert not deliver()
    ids = {request.headers["webhook-id"] for request in receiver.received}
    bodies = {request.body for request in receiver.received}
    assert (len(receiver.received), len(ids), len(bodies)) == (4, 1, 1)


def test_an_endpoint_says_when(registry: Registry, receiver: Receiver, clock: Clock) -> None:
    deliver = delivered(registry, receiver, clock, outcomes=[])
    happen(registry)
    receiver.replies = [Reply(status=503, headers={"retry-after": "300"})]
    assert deliver()
    clock.now += 299
    assert not deliver()
    clock.now += 1
    assert deliver()


@pytest.mark.parametrize("status", [410, 500])
def test_it_is_given_up_when_it_is_gone_or_too_late(
    registry: Registry, receiver: Receiver, clock: Clock, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    outcomes: list[Outcome] = []
    deliver = delivered(registry, receiver, clock, outcomes=outcomes)
    happen(registry)
    if status == 500:
        clock.now += GIVE_UP_SECONDS
    receiver.replies = [Reply(status=status)]
    with caplog.at_level(logging.WARNING):
        assert deliver()
    assert outcomes == ["given_up"]
    assert f"to {LOOPBACK} is given up after 1 attempts: HTTP {status}" in caplog.text
    assert "/hook" not in caplog.text
    state = registry.webhooks.state(receiver.url(), kinds=EVENT_TYPES)
    assert (state.pending, state.given_up, state.error) == (0, 1, f"HTTP {status}")
    clock.now += GIVE_UP_SECONDS
    assert not deliver()


@pytest.mark.slow
def test_a_slow_endpoint_delays_no_other_and_no_end(home: Home) -> None:
    with Registry.open(home) as registry, receiving() as slow, receiving() as quick:
        settings = WebhooksSettings(allow=(LOOPBACK,), endpoints=(slow.endpoint(), quick.endpoint()))
        slow.replies = [Reply(seconds=600.0)]
        with WebhookThread(home, settings):
            for number in range(10):
                happen(registry, number, at=registry.queue._clock())
            numbers = [quick.unwrap(request).data.number for request in quick.wait(10)]
            assert numbers == list(range(10))
            until(lambda: registry.webhooks.state(quick.url(), kinds=EVENT_TYPES).delivered == 10)
            slow.wait(1)
        assert registry.webhooks.state(slow.url(), kinds=EVENT_TYPES).pending == 10


@pytest.mark.slow
def test_two_servers_send_each_webhook_once_as_a_rule(home: Home, receiver: Receiver) -> None:
    outcomes: list[Outcome] = []
    settings = receiver.settings()
    with Registry.open(home) as registry:
        first = WebhookThread(home, settings, on_outcome=outcomes.append)
        second = WebhookThread(home, settings, on_outcome=outcomes.append)
        with first, second:
            for number in range(20):
                happen(registry, number, at=registry.queue._clock())
            until(lambda: len(outcomes) == 20)
    assert outcomes == ["delivered"] * 20
    assert sorted(receiver.unwrap(request).data.number for request in receiver.received) == list(range(20))


def test_without_endpoints_nothing_runs(home: Home) -> None:
    with WebhookThread(home, WebhooksSettings()) as thread:
        assert thread._thread is None
