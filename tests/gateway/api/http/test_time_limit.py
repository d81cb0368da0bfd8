"""Waits end in time, one timer serves many of them, and a cancellation from elsewhere stays one."""

from __future__ import annotations

import asyncio

import pytest

from tunery.gateway.api.http.time_limit import TimeLimit


async def value(seconds: float = 0.0) -> str:
    await asyncio.sleep(seconds)
    return "done"


async def test_a_wait_that_is_over_in_time_gives_its_value() -> None:
    limit, now = TimeLimit(), asyncio.get_running_loop().time
    assert [await limit.wait(value(), until=now() + 60) for _ in range(3)] == ["done"] * 3
    limit.close()
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_wait_that_takes_too_long_is_cancelled_and_raises_timeout_error() -> None:
    limit, now = TimeLimit(), asyncio.get_running_loop().time
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    assert await limit.wait(value(), until=now() + 600) == "done"
    # The timer is set for ten minutes now, and has to be set for earlier.
    with pytest.raises(TimeoutError):
        await limit.wait(slow(), until=now() + 0.02)
    assert ended == ["cancelled"]
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
    # The next wait has its own time, whatever became of the one before.
    assert await limit.wait(value(0.05), until=now() + 600) == "done"
    limit.close()


async def test_a_later_wait_is_not_ended_by_the_timer_of_an_earlier_one() -> None:
    limit, now = TimeLimit(), asyncio.get_running_loop().time
    assert await limit.wait(value(), until=now() + 0.01) == "done"
    assert await limit.wait(value(0.1), until=now() + 600) == "done"
    limit.close()


async def test_a_time_that_is_over_ends_even_what_would_soon_be_done() -> None:
    limit, now = TimeLimit(), asyncio.get_running_loop().time
    with pytest.raises(TimeoutError):
        await limit.wait(asyncio.sleep(600), until=now() - 1)
    limit.close()


async def test_a_cancellation_from_elsewhere_is_passed_on() -> None:
    limit, now = TimeLimit(), asyncio.get_running_loop().time
    waiting = asyncio.create_task(limit.wait(asyncio.sleep(600), until=now() + 600))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    limit.close()


async def test_nothing_happens_where_nobody_waits() -> None:
    limit, now = TimeLimit(), asyncio.get_running_loop().time
    await limit.wait(value(), until=now() + 0.01)
    await asyncio.sleep(0.05)
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
    limit.close()
