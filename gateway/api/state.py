"""Owns what every handler works with, wired once when the application is made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from tunery.gateway.api.http.admission import Admission
from tunery.gateway.api.http.reading import Readers
from tunery.gateway.engine.interface import Engine
from tunery.gateway.engine.messages import Ready
from tunery.gateway.metrics import Metrics
from tunery.gateway.resolver import Resolver, Target
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry.errors import Overloaded, Unavailable
from tunery.registry.registry import Registry
from tunery.registry.settings import ServeSettings

__all__ = ["Gateway"]

T = TypeVar("T")


@dataclass
class Gateway:
    """The parts of a running gateway. `draining` says that it is about to end and takes nothing new."""

    settings: ServeSettings
    registry: Registry
    engine: Engine
    renderer: Renderer
    resolver: Resolver
    metrics: Metrics
    draining: bool = False
    admission: Admission = field(init=False)
    readers: Readers = field(default_factory=Readers)

    def __post_init__(self) -> None:
        self.admission = Admission(self.settings, self.metrics.in_flight.set)

    @property
    def in_flight(self) -> int:
        """How many requests are in hand."""
        return self.admission.count

    def engine_ready(self) -> Ready:
        """The engine's description; raise Unavailable while nothing can be answered."""
        if self.draining:
            raise Unavailable("this server is about to end; send the request again", code="draining")
        ready = self.engine.ready
        if ready is None:
            raise self._outage()
        return ready

    async def engine_available(self, target: Target) -> Ready:
        """The engine's description, after waiting a while for an engine that is being started; a place is held meanwhile.

        Raises Unavailable, saying when to come back, when that takes too long.
        """
        if self.engine.ready is None and not self.draining:
            with self.hold(1, target), contextlib.suppress(TimeoutError, Unavailable):
                async with asyncio.timeout(self.settings.restart_hold_seconds):
                    await self.engine.wait_ready()
        return self.engine_ready()

    def _outage(self) -> Unavailable:
        """The error of whoever asks while there is no engine that can answer."""
        outage = self.engine.outage
        seconds = outage.retry_after if outage else 1
        what = {"not responding": "is not responding", "failed": "could not be started"}.get(
            outage.reason if outage else "", "is starting"
        )
        error = Unavailable(f"the engine {what}; try again in {seconds} s", code="engine_starting")
        error.retry_after = seconds
        return error

    @contextlib.contextmanager
    def hold(self, count: int, target: Target, *, param: str = "n") -> Iterator[None]:
        """Have `count` more requests for `target` in hand; those that are refused are counted. Raises as Admission.hold."""
        with contextlib.ExitStack() as holding:
            try:
                holding.enter_context(self.admission.hold(count, tenant=target.tenant, param=param))
            except Overloaded as error:
                self.metrics.requests.labels(self.metrics.label(target.label), error.code).inc(count)
                raise
            yield

    async def reading(self, size: int, read: Callable[[Callable[[], None]], T]) -> T:
        """See Readers.run."""
        return await self.readers.run(size, read)
