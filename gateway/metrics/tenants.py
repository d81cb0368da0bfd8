"""Which tenants have series of their own: those with the most requests, so that their number has a bound."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from tunery.gateway.metrics.row import NO_TENANT, OTHER_TENANTS

__all__ = ["TenantLabels"]

RANK_SECONDS = 600.0
"""Seconds between looks for tenants that have become busier than those with series."""
MAX_CANDIDATES = 1_000
"""Tenants without series whose requests are counted."""
CLEARLY = 2
"""A tenant takes another's series only with so many times its requests, so that two alike do not swap all the time."""


class TenantLabels:
    """The values of the label `tenant`: up to `most` tenants, first come, first served, and later the busiest."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._ranked_at = clock()
        self._own: Counter[str] = Counter()
        self._others: Counter[str] = Counter()

    def label(self, tenant: str) -> str:
        """The label of a tenant."""
        if not tenant:
            return NO_TENANT
        return tenant if tenant in self._own else OTHER_TENANTS

    def count(self, tenant: str) -> str:
        """Count a request of a tenant; returns its label."""
        if not tenant:
            return NO_TENANT
        if tenant in self._own or len(self._own) < self._most:
            self._own[tenant] += 1
            return tenant
        if tenant in self._others or len(self._others) < MAX_CANDIDATES:
            self._others[tenant] += 1
        return OTHER_TENANTS

    def rank(self) -> list[str]:
        """The tenants that have just lost their series to busier ones; none most of the time."""
        if self._clock() - self._ranked_at < RANK_SECONDS:
            return []
        self._ranked_at = self._clock()
        lost = []
        for tenant, requests in self._others.most_common(self._most):
            loser = min(self._own, key=self._own.__getitem__)
            if requests <= CLEARLY * self._own[loser]:
                break
            lost.append(loser)
            del self._own[loser], self._others[tenant]
            self._own[tenant] = requests
        # What was long ago counts less and less, and who has gone quiet is forgotten among the others.
        self._own = Counter({tenant: count // 2 for tenant, count in self._own.items()})
        self._others = Counter({tenant: count // 2 for tenant, count in self._others.items() if count > 1})
        return lost
