"""OpenAI's headers about limits."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tunery.gateway.tenancy.limits.interface import Standing

__all__ = ["duration_text", "limit_headers", "refusal_headers"]


def limit_headers(resource: str, standings: Iterable[tuple[int, Standing]]) -> dict[str, str]:
    """The headers of the limit, of these and how they stand, that has the least left."""
    limit, standing = min(standings, key=lambda each: each[1].remaining)
    return {
        f"x-ratelimit-limit-{resource}": str(limit),
        f"x-ratelimit-remaining-{resource}": str(standing.remaining),
        f"x-ratelimit-reset-{resource}": duration_text(standing.reset_seconds),
    }


def refusal_headers(wait: float | None, *, retry: bool) -> dict[str, str]:
    """When to try again, and whether OpenAI's clients should do so by themselves."""
    headers = {} if wait is None else {"retry-after-ms": str(math.ceil(1000 * wait))}
    return headers if retry else headers | {"x-should-retry": "false"}


def duration_text(seconds: float) -> str:
    """A duration as OpenAI writes it: 120ms, 1s, 6m0s."""
    milliseconds = math.ceil(1000 * max(0.0, seconds))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    whole = math.ceil(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
