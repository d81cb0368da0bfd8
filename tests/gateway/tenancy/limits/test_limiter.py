"""What is reserved for requests and given back after them, whatever becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunery.gateway.tenancy.limits.book import LimitBook
from tunery.gateway.tenancy.limits.limiter import Limiter
from tunery.gateway.tenancy.limits.memory import MemoryCounters
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.usage.writer import UsageWriter
from tunery.registry.configuration.limits import LimitsSettings
from tunery.registry.errors import LimitReached
from tunery.registry.registry import Registry
from tunery.registry.usage.records import UsageRecord

ACME, GLOBEX = Principal(tenant="acme"), Principal(tenant="globex")
MakeLimiter = Callable[..., Limiter]


class Clock:
    """A monotonic clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(registry: Registry, clock: Clock) -> MakeLimiter:
    def make(**limits: Any) -> Limiter:
        chosen = LimitsSettings(**limits)
        usage = UsageWriter(registry.usage, days=1)
        refused.clear()
        return Limiter(LimitBook(registry, chosen), MemoryCounters(clock=clock), usage, on_refused=refused.append)

    return make


refused: list[str] = []

REQUESTS = st.lists(
    st.tuples(
        st.sampled_from([ACME, GLOBEX]),
        st.integers(min_value=1, max_value=60),  # tokens at most
        st.integers(min_value=0, max_value=70),  # tokens that are used
        st.sampled_from(["ends", "fails", "busy"]),
        st.floats(min_value=0, max_value=30),  # seconds that pass
        st.integers(min_value=0, max_value=3),  # requests that have begun and end before it
    ),
    max_size=40,
)


class Day:
    """Requests of two tenants that begin, overlap and end, beside a plain list of what they used when."""

    def __init__(self, limiter: Limiter, clock: Clock) -> None:
        self.limiter, self.clock = limiter, clock
        self.running: list[Any] = []
        self.log: list[list[Any]] = []
        """Tenant, time, tokens, and whether it counts."""

    async def begin(self, by: Principal, most: int, used: int, how: str) -> None:
        context = self.limiter.admit(by, tokens=most)
        with contextlib.suppress(LimitReached):
            reservation = await context.__aenter__()
            entry = [by.tenant, self.clock.now, most, True]
            self.log.append(entry)
            self.running.append((context, reservation, entry, used, how))

    async def end_first(self) -> None:
        context, reservation, entry, used, how = self.running.pop(0)
        reservation.begun = how != "busy"
        reservation.spent = min(used, entry[2]) if reservation.begun else 0
        entry[2], entry[3] = reservation.spent, reservation.begun
        error = RuntimeError() if how == "fails" else None
        with contextlib.suppress(RuntimeError):
            await context.__aexit__(type(error) if error else None, error, None)

    def check(self, tenant: str) -> None:
        recent = [each for each in self.log if each[0] == tenant and each[1] > self.clock.now - 60 and each[3]]
        assert len(recent) <= 8
        assert sum(each[2] for each in recent) <= 100
        assert sum(each[2][0] == tenant for each in self.running) <= 3


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(REQUESTS)
def test_what_is_used_and_reserved_never_exceeds_the_limits(
    limiter: MakeLimiter, clock: Clock, requests: list[Any]
) -> None:
    """However requests overlap and end, no minute has more than the limits, and nothing stays reserved."""
    day = Day(limiter(requests_per_minute=8, tokens_per_minute=100, concurrent_requests=3), clock)
    clock.now = 0.0

    async def run() -> None:
        for by, most, used, how, pause, ending in requests:
            clock.now += pause
            for _ in range(min(ending, len(day.running))):
                await day.end_first()
            await day.begin(by, most, used, how)
            day.check("acme")
            day.check("globex")
        while day.running:
            await day.end_first()
        clock.now += 65
        for by in (ACME, GLOBEX):
            headers = day.limiter.headers(by)
            assert headers["x-ratelimit-remaining-requests"] == "8"
            assert headers["x-ratelimit-remaining-tokens"] == "100"
            assert headers["x-ratelimit-reset-tokens"] == "0ms"
            async with day.limiter.admit(by, tokens=100):
                pass

    asyncio.run(run())


async def test_a_refusal_says_what_whose_and_when(limiter: MakeLimiter, clock: Clock) -> None:
    limit = limiter(requests_per_minute=2, tokens_per_minute=50)
    async with limit.admit(ACME, tokens=30) as reservation:
        reservation.begun, reservation.spent = True, 10
        with pytest.raises(LimitReached) as reached:
            async with limit.admit(ACME, tokens=21):
                pytest.fail("admitted")
        assert "the tenant acme may have 50 tokens per minute, 30 are used and this request may use 21" in str(
            reached.value
        )
        assert (reached.value.limit, reached.value.code) == ("tokens_per_minute", "rate_limit_exceeded")
        assert reached.value.retry_after == 65
        assert reached.value.headers["x-ratelimit-remaining-tokens"] == "20"
    assert limit.headers(ACME)["x-ratelimit-remaining-tokens"] == "40"
    with pytest.raises(LimitReached, match="lower max_tokens") as reached:
        async with limit.admit(ACME, tokens=51):
            pytest.fail("admitted")
    assert reached.value.headers["x-should-retry"] == "false"
    assert reached.value.wait is None
    async with limit.admit(ACME, tokens=1) as reservation:
        reservation.begun = True
    with pytest.raises(LimitReached, match="2 requests per minute"):
        limit.check(ACME)
    limit.check(GLOBEX)
    # A request of a batch runs on what others leave.
    limit.check(ACME, background=True)
    async with limit.admit(ACME, tokens=10**6, background=True):
        pass
    clock.now = 65.0
    limit.check(ACME)
    assert refused == ["tokens_per_minute", "tokens_per_minute", "requests_per_minute"]


async def test_the_month_counts_what_is_used_reserved_and_not_yet_written(
    limiter: MakeLimiter, registry: Registry
) -> None:
    limit = limiter(tokens_per_month=100)
    usage = limit._usage
    await usage.start()
    used = UsageRecord(at=usage.now(), tenant="acme", model="tiny", endpoint="x", input_tokens=50, output_tokens=10)
    usage.add(used)
    async with limit.admit(ACME, tokens=30):
        with pytest.raises(LimitReached, match="may use 100 tokens a month; 90 are used or reserved") as reached:
            async with limit.admit(ACME, tokens=11, background=True):
                pytest.fail("admitted")
    assert reached.value.code == "insufficient_quota"
    assert reached.value.headers["x-should-retry"] == "false"
    async with limit.admit(ACME, tokens=40), limit.admit(GLOBEX, tokens=100):
        pass
    # Another gateway's, and this one's that is written meanwhile, count once each.
    registry.usage.add([used])
    await usage.stop()
    assert usage.month.used("acme") == 120
    with pytest.raises(LimitReached):
        limit.check(ACME)
