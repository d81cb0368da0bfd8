"""Owns how many requests are in hand, and whose they are; refuses what is beyond the bounds, saying when to come back."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator

from tunery.registry.errors import InvalidInput, Overloaded
from tunery.registry.settings import ServeSettings

__all__ = ["Admission", "Busy"]

ALONE_AFTER = 60.0
"""Seconds without a request from anybody else, after which a tenant counts as alone."""
LONGEST_WAIT = 60
NEWEST = 0.2
"""How much the latest request counts in what a request is thought to take."""


class Busy(Overloaded):
    """Too many requests are in hand; there may be room in `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(f"{message}; try again in {retry_after} s")
        self.retry_after = retry_after


class Admission:
    """The requests in hand, running or waiting. `show` is told their number whenever it changes.

    All tenants together may have `max_batch + max_waiting`, one tenant `max_waiting_per_tenant`. Where that is 0, a tenant that is
    alone may have them all, and half of them as soon as another one has asked within the last minute, in vain or not.
    """

    def __init__(
        self, settings: ServeSettings, show: Callable[[int], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._batch, self._most = settings.max_batch, settings.max_batch + settings.max_waiting
        self._bound = settings.max_waiting_per_tenant
        self._show, self._clock = show, clock
        self._held: Counter[str] = Counter()
        self._asked: dict[str, float] = {}
        self._seconds = 0.0
        self._idle = asyncio.Event()
        self.count = 0

    @contextlib.contextmanager
    def hold(self, count: int, *, tenant: str, param: str = "n") -> Iterator[None]:
        """Have `count` more requests in hand for as long as the context lasts.

        Raises Busy when that is too many now, InvalidInput naming `param` when it always would be.
        """
        self._check(count, tenant, param)
        self._change(count, tenant)
        began, rounds = self._clock(), math.ceil(self.count / self._batch)
        try:
            yield
        finally:
            self._change(-count, tenant)
            # Who found several batches' worth of requests in hand spent most of the time waiting for them.
            self._seconds += NEWEST * ((self._clock() - began) / rounds - self._seconds)

    async def idle(self) -> None:
        """Wait until nothing is in hand."""
        while self.count:
            self._idle.clear()
            await self._idle.wait()

    def _check(self, count: int, tenant: str, param: str) -> None:
        alone = self._alone(tenant)
        if count > (most := min(self._bound or self._most, self._most)):
            raise InvalidInput(f"the request asks for {count} answers and {most} is the most at once", param=param)
        if self.count + count > self._most:
            raise self._busy(f"{self.count} requests are in hand and {self._most} is the most")
        most = self._bound or (self._most if alone else max(1, self._most // 2))
        if self._held[tenant] + count > most:
            whose = f"the tenant {tenant}" if tenant else "the bare base"
            raise self._busy(f"{self._held[tenant]} requests for {whose} are in hand and {most} is the most")

    def _alone(self, tenant: str) -> bool:
        """Whether nobody else has asked lately; this one now has."""
        now = self._clock()
        self._asked.pop(tenant, None)
        # The latest come last, so the first other one from the end is the one to look at.
        other = next(reversed(self._asked.values()), -math.inf)
        self._asked[tenant] = now
        return now - other > ALONE_AFTER

    def _busy(self, message: str) -> Busy:
        """Refuse until the queue, at the present pace, has run."""
        seconds = (self.count - self._batch) * self._seconds / self._batch
        return Busy(message, retry_after=min(max(math.ceil(seconds), 1), LONGEST_WAIT))

    def _change(self, count: int, tenant: str) -> None:
        self.count += count
        self._held[tenant] += count
        if not self._held[tenant]:
            del self._held[tenant]
        self._show(self.count)
        if not self.count:
            self._idle.set()
