"""When a webhook is sent again."""

from __future__ import annotations

import email.utils
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.gateway.webhooks.backoff import DELAYS, GIVE_UP_SECONDS, LONGEST_WAIT, next_attempt, retry_after


def due(attempt: int, *, now: float = 0.0, wait: float | None = None, seed: int = 0) -> float | None:
    return next_attempt(attempt, event_at=0.0, now=now, wait=wait, random=random.Random(seed))


@given(attempt=st.integers(1, 100), seed=st.integers())
def test_delays_grow_and_vary(attempt: int, seed: int) -> None:
    at = due(attempt, seed=seed)
    assert at is not None
    delay = DELAYS[min(attempt, len(DELAYS)) - 1]
    assert 0.8 * delay <= at <= 1.2 * delay


def test_it_is_given_up_after_three_days() -> None:
    now, attempts = 0.0, 0
    while (at := due(attempts + 1, now=now, seed=attempts)) is not None:
        assert at > now
        now, attempts = at, attempts + 1
    assert GIVE_UP_SECONDS - 1.2 * DELAYS[-1] < now < GIVE_UP_SECONDS
    assert attempts < 20


def test_what_the_endpoint_asks_for_is_respected_up_to_a_bound() -> None:
    assert due(1, wait=100.0) == 100.0
    assert due(5, wait=100.0) != 100.0
    assert due(1, wait=1e9) == LONGEST_WAIT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("7", 7.0), (" 7 ", 7.0), ("-7", None), ("soon", None), ("", None), ("1" * 400, 111111111.0)],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, now=0.0) == seconds


def test_retry_after_as_a_date() -> None:
    assert retry_after(email.utils.formatdate(1_000_060, usegmt=True), now=1_000_000.0) == 60.0
    assert retry_after(email.utils.formatdate(1, usegmt=True), now=1_000_000.0) == 0.0


@given(st.text())
def test_no_header_breaks_it(value: str) -> None:
    seconds = retry_after(value, now=0.0)
    assert seconds is None or seconds >= 0.0
