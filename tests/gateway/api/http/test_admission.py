"""How many requests each tenant may have in flight, and when refused ones may retry."""

from __future__ import annotations

import asyncio
import contextlib

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.api.conftest import Served
from tests.gateway.api.test_metrics import scrape
from tunery.gateway.api.http.admission import ALONE_AFTER, Admission, Busy
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import InvalidInput

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def admission(*, batch: int = 2, waiting: int = 8, bound: int = 0) -> tuple[Admission, Clock]:
    clock = Clock()
    settings = ServeSettings(max_batch=batch, max_waiting=waiting, max_waiting_per_tenant=bound)
    return Admission(settings, lambda count: None, clock=clock), clock


def held(admission: Admission, count: int, tenant: str) -> contextlib.ExitStack:
    """`count` requests of one each, until the stack is closed."""
    stack = contextlib.ExitStack()
    for _ in range(count):
        stack.enter_context(admission.hold(1, tenant=tenant))
    return stack


def test_a_tenant_that_is_alone_may_have_everything() -> None:
    made, _ = admission()
    with held(made, 10, "acme"):
        assert made.count == 10
        with pytest.raises(Busy, match="10 requests are in flight; the limit is 10"):
            made.hold(1, tenant="acme").__enter__()
    assert made.count == 0


def test_while_another_tenant_sends_requests_each_may_have_half() -> None:
    made, clock = admission()
    with held(made, 1, "globex"):
        pass
    with held(made, 5, "acme"):
        with pytest.raises(Busy, match="5 requests for the tenant acme are in flight; the limit is 5"):
            made.hold(1, tenant="acme").__enter__()
        with held(made, 5, "globex"):
            assert made.count == 10
    clock.now += ALONE_AFTER + 1
    with held(made, 10, "acme"):
        assert made.count == 10


def test_one_that_is_refused_for_want_of_room_gets_it_when_room_is_made() -> None:
    made, _ = admission()
    acme = held(made, 10, "acme")
    with pytest.raises(Busy):
        made.hold(1, tenant="globex").__enter__()
    # What acme gives up, it cannot take again while globex is about.
    acme.close()
    with held(made, 5, "acme"):
        with pytest.raises(Busy):
            made.hold(1, tenant="acme").__enter__()
        with held(made, 1, "globex"):
            assert made.count == 6


def test_a_tenants_own_bound_holds_whatever_others_send() -> None:
    made, _ = admission(bound=3)
    with held(made, 3, ""), pytest.raises(Busy, match="for the bare base are in flight; the limit is 3"):
        made.hold(1, tenant="").__enter__()
    with pytest.raises(InvalidInput, match="4 answers; at most 3 can be in flight at once") as caught:
        made.hold(4, tenant="acme", param="input").__enter__()
    assert caught.value.param == "input"


def test_when_to_come_back_follows_from_the_queue_and_the_pace() -> None:
    made, clock = admission()

    def refusal() -> int:
        with held(made, 10, "acme"), pytest.raises(Busy) as caught:
            made.hold(1, tenant="acme").__enter__()
        assert f"try again in {caught.value.retry_after} s" in caught.value.message
        return caught.value.retry_after

    assert refusal() == 1, "nothing is known yet"
    # Ten at once, of which two run at a time, five seconds each.
    for _ in range(10):
        batch = [held(made, 1, "acme") for _ in range(10)]
        while batch:
            clock.now += 5.0
            batch.pop(0).close()
            batch.pop(0).close()
    assert made._mean_seconds == pytest.approx(5.0, rel=0.01)
    with held(made, 10, "acme"), pytest.raises(Busy, match="try again in 20 s"):
        made.hold(1, tenant="acme").__enter__()
    for _ in range(60):
        with held(made, 1, "acme"):
            clock.now += 1000.0
    assert refusal() == 60


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.integers(1, 4), st.booleans()), max_size=60))
def test_the_bounds_hold_whatever_comes(steps: list[tuple[str, int, bool]]) -> None:
    made, clock = admission()
    open_: list[tuple[str, int, contextlib.ExitStack]] = []
    for tenant, count, ends in steps:
        clock.now += 1.0
        if ends and open_:
            open_.pop(0)[2].close()
        stack = contextlib.ExitStack()
        with contextlib.suppress(Busy):
            stack.enter_context(made.hold(count, tenant=tenant))
            open_.append((tenant, count, stack))
        assert made.count == sum(count for _, count, _ in open_) <= 10
    for _, _, stack in open_:
        stack.close()
    assert made.count == 0


class TestOverHttp:
    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(base="tiny", auth=False, max_batch=1, max_waiting=3)

    @pytest.mark.slow
    async def test_a_greedy_tenant_leaves_room_for_another(self, served: Served) -> None:
        for seed, name in enumerate(("acme/support", "globex/tickets")):
            served.publish(name, seed=seed)
        served.engine.delay = 0.1
        create = served.client.chat.completions.create
        await create(model="globex/tickets", messages=MESSAGES, max_tokens=1)
        greedy = [asyncio.create_task(create(model="acme/support", messages=MESSAGES)) for _ in range(4)]
        while len(served.engine.requests) < 3:
            await asyncio.sleep(0.01)
        answer = await create(model="globex/tickets", messages=MESSAGES)
        assert answer.choices
        results = await asyncio.gather(*greedy, return_exceptions=True)
        refused = [one for one in results if isinstance(one, openai.RateLimitError)]
        assert len(refused) == 2
        assert 1 <= int(refused[0].response.headers["retry-after"]) <= 60
        assert refused[0].code == "overloaded"
        samples = await scrape(served)
        assert samples["tunery_requests_total", (("adapter", "acme/support"), ("outcome", "overloaded"))] == 2
