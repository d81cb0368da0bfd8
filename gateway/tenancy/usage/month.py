"""The tokens that every tenant and key has used in this calendar month (UTC)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

from tunery.registry.usage.records import UsageRecord
from tunery.registry.usage.usage import MonthTotals, Usage

__all__ = ["MonthTokens", "month_end", "month_start"]


def month_start(now: float) -> float:
    """When the month of a Unix time began."""
    return datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()


def month_end(now: float) -> float:
    """When the next month begins."""
    first = datetime.fromtimestamp(month_start(now), UTC)
    return first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1).timestamp()


class MonthTokens:
    """The sums in memory, of all gateways: those that are in the registry, and what this one has not written yet."""

    def __init__(self) -> None:
        self._start = -1.0
        self._number = 0
        self._stored: Counter[tuple[str, str | None]] = Counter()
        self._pending: Counter[tuple[str, str | None]] = Counter()

    def used(self, tenant: str, key: str | None = None) -> int:
        """The tokens of a tenant, or of one of its keys."""
        return self._stored[tenant, key] + self._pending[tenant, key]

    def note(self, record: UsageRecord) -> None:
        """Count what is to be written."""
        _add(self._pending, record.tenant, record.key, record.input_tokens + record.output_tokens)

    def read(self, usage: Usage, now: float) -> tuple[float, MonthTotals, bool]:
        """What was written since the last time, by anybody, or in all of this month; for a thread, then `apply`."""
        start, end = month_start(now), month_end(now)
        if start != self._start:
            return start, usage.tokens_between(start, end), True
        return start, usage.tokens_after(self._number, start=start, end=end), False

    def apply(self, read: tuple[float, MonthTotals, bool], written: Iterable[UsageRecord]) -> None:
        """Take in what was read; `written` are records of `note` that are among it."""
        self._start, totals, fresh = read
        self._number = totals.number
        if fresh:
            self._stored.clear()
        for (tenant, key), tokens in totals.tokens.items():
            _add(self._stored, tenant, key, tokens)
        self.forget(written)

    def forget(self, records: Iterable[UsageRecord]) -> None:
        """Count records no longer as not written."""
        for record in records:
            _add(self._pending, record.tenant, record.key, -(record.input_tokens + record.output_tokens))


def _add(sums: Counter[tuple[str, str | None]], tenant: str, key: str, tokens: int) -> None:
    for place in ((tenant, None), (tenant, key)) if key else ((tenant, None),):
        sums[place] += tokens
        if not sums[place]:
            del sums[place]
