"""When a webhook that failed is sent again, and when no more."""

from __future__ import annotations

import email.utils
import random

__all__ = ["GIVE_UP_SECONDS", "next_attempt", "retry_after"]

DELAYS = (5.0, 30.0, 120.0, 600.0, 3600.0, 3 * 3600.0, 6 * 3600.0, 12 * 3600.0)
"""Seconds after each failure; the last one is repeated."""
JITTER = 0.2
"""The share by which a delay varies, so that what failed together is not sent together again."""
LONGEST_WAIT = 12 * 3600.0
"""Seconds that an endpoint may ask for."""
GIVE_UP_SECONDS = 3 * 86400.0
"""Seconds after the event when it is given up."""


def next_attempt(
    attempt: int, *, event_at: float, now: float, wait: float | None, random: random.Random
) -> float | None:
    """When to try again after failure number `attempt` (from 1), in Unix seconds; None to give up.

    `wait` is what the endpoint asked for, in seconds, of which twelve hours count.
    """
    delay = DELAYS[min(attempt, len(DELAYS)) - 1] * random.uniform(1 - JITTER, 1 + JITTER)
    due = now + max(delay, min(wait or 0.0, LONGEST_WAIT))
    return due if due < event_at + GIVE_UP_SECONDS else None


def retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds to wait, from a Retry-After header in either of its forms; None where it says nothing."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None
