"""Limits how many requests are in flight, in total and for each tenant; refusals say when to retry."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator

from tunery.gateway.api.http.places import LocalPlaces, Places
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import InvalidInput, LimitReached, Overloaded

__all__ = ["Admission", "Busy"]

ALONE_AFTER = 60.0
"""Seconds without a request from another tenant, after which a tenant counts as alone."""
MAX_RETRY_AFTER = 60
SMOOTHING = 0.2
"""Weight of the latest request in the moving average of a request's duration."""


class Busy(Overloaded):
    """Too many requests are in flight; there may be room in `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(f"{message}; try again in {retry_after} s")
        self.retry_after = retry_after


class Admission:
    """The requests in flight, running or waiting. `on_change` is called with the number of this process's whenever it
    changes; `places` may be shared with other processes, and then the limits are for all of them together.

    All tenants together may have `max_batch + max_waiting`, one tenant `max_waiting_per_tenant`. If that is 0, a tenant
    that is alone may have them all, but only half of them once another tenant has sent a request, admitted or not,
    within the last minute. A tenant with a `share` of all places, which may be 0 for none, has no more than that.
    """

    def __init__(
        self,
        settings: ServeSettings,
        on_change: Callable[[int], None],
        *,
        share: Callable[[str], float] = lambda tenant: 0.0,
        places: Places | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batch, self._limit = settings.max_batch, settings.max_batch + settings.max_waiting
        self._tenant_limit = settings.max_waiting_per_tenant
        self._on_change, self._share, self._clock = on_change, share, clock
        self._places = places or LocalPlaces(clock)
        self._by_tenant: Counter[str] = Counter()
        self._mean_seconds = 0.0
        self._idle = asyncio.Event()
        self.count = 0

    @contextlib.contextmanager
    def hold(self, count: int, *, tenant: str, param: str = "n") -> Iterator[None]:
        """Count `count` more requests as in flight while the context lasts.

        Raises Busy when that is too many now, InvalidInput naming `param` when it always would be.
        """
        self._check(count, tenant, param)
        self._change(count, tenant)
        started, batches = self._clock(), math.ceil(self._places.count / self._batch)
        try:
            yield
        finally:
            self._change(-count, tenant)
            # A request that arrived behind several batches spent most of its time waiting for them.
            self._mean_seconds += SMOOTHING * ((self._clock() - started) / batches - self._mean_seconds)

    @property
    def by_tenant(self) -> dict[str, int]:
        """How many requests each tenant has in flight."""
        return dict(self._by_tenant)

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        while self.count:
            self._idle.clear()
            await self._idle.wait()

    def _check(self, count: int, tenant: str, param: str) -> None:
        alone = self._places.since_another(tenant) > ALONE_AFTER
        in_flight, of_tenant = self._places.count, self._places.of(tenant)
        share = self._share(tenant)
        places = max(1, int(share * self._limit)) if share else self._limit
        if count > (limit := min(self._tenant_limit or self._limit, self._limit, places)):
            raise InvalidInput(
                f"the request asks for {count} answers; at most {limit} can be in flight at once", param=param
            )
        if in_flight + count > self._limit:
            raise self._busy(f"{in_flight} requests are in flight; the limit is {self._limit}")
        limit = self._tenant_limit or (self._limit if alone else max(1, self._limit // 2))
        if of_tenant + count > limit:
            name = f"the tenant {tenant}" if tenant else "the bare base"
            raise self._busy(f"{of_tenant} requests for {name} are in flight; the limit is {limit}")
        if of_tenant + count > places:
            raise LimitReached(
                f"{of_tenant} requests of the tenant {tenant} are in flight; its share of all places is "
                f"{places} (queue_share)",
                limit="queue_share",
                wait=1.0,
            )

    def _busy(self, message: str) -> Busy:
        """The refusal, until the queue would have run at the present pace."""
        seconds = (self._places.count - self._batch) * self._mean_seconds / self._batch
        return Busy(message, retry_after=min(max(math.ceil(seconds), 1), MAX_RETRY_AFTER))

    def _change(self, count: int, tenant: str) -> None:
        self._places.change(count, tenant)
        self.count += count
        self._by_tenant[tenant] += count
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]
        self._on_change(self.count)
        if not self.count:
            self._idle.set()
