"""The parts that every handler works with, wired together once when the application is created."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from litestar import Request

from tunery.gateway.api.http.admission import Admission
from tunery.gateway.api.http.connection import cancel_on_disconnect
from tunery.gateway.api.http.worker_pool import WorkerPool
from tunery.gateway.engine.interface import Engine
from tunery.gateway.engine.messages import Ready
from tunery.gateway.jobs.file_checks import FileChecks
from tunery.gateway.metrics.recorder import Metrics
from tunery.gateway.resolver import Resolver, Target
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.discovery import load_plugins
from tunery.plugins.manager import Plugins
from tunery.registry.errors import Overloaded, Unavailable
from tunery.registry.registry import Registry
from tunery.registry.settings import JobsSettings, ServeSettings

__all__ = ["Gateway"]

T = TypeVar("T")


@dataclass
class Gateway:
    """The parts of a running gateway. While `draining`, it shuts down and accepts no new requests."""

    settings: ServeSettings
    registry: Registry
    engine: Engine
    renderer: Renderer
    resolver: Resolver
    metrics: Metrics
    jobs: JobsSettings = field(default_factory=JobsSettings)
    plugins: Plugins = field(default_factory=load_plugins)
    draining: bool = False
    file_checks: FileChecks = field(init=False)
    admission: Admission = field(init=False)
    workers: WorkerPool = field(default_factory=WorkerPool)

    def __post_init__(self) -> None:
        self.admission = Admission(self.settings, self.metrics.set_in_flight)
        self.file_checks = FileChecks(self.registry, self.plugins)

    @property
    def in_flight(self) -> int:
        """How many requests have been accepted and not yet answered."""
        return self.admission.count

    def engine_ready(self) -> Ready:
        """The engine's description; raise Unavailable while it cannot answer or the server is draining."""
        if self.draining:
            raise Unavailable("this server is shutting down; send the request again", code="draining")
        ready = self.engine.ready
        if ready is None:
            raise self._outage()
        return ready

    async def wait_for_engine(self, request: Request[Any, Any, Any], target: Target) -> Ready:
        """The engine's description, after waiting up to `restart_hold_seconds` for one that is starting.

        The request counts as in flight while it waits, and stops waiting when its client disconnects. Raises
        Unavailable, with when to retry, if the engine does not start in time.
        """
        if self.engine.ready is None and not self.draining:
            await cancel_on_disconnect(request, lambda: self._hold_for_engine(target))
        return self.engine_ready()

    async def _hold_for_engine(self, target: Target) -> None:
        with self.hold(1, target), contextlib.suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(self.settings.restart_hold_seconds):
                await self.engine.wait_ready()

    def _outage(self) -> Unavailable:
        """The error for a request that arrives while no engine can answer."""
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
        """Count `count` more requests for `target` as in flight; the metrics count refusals.

        Raises as Admission.hold.
        """
        with contextlib.ExitStack() as holding:
            try:
                holding.enter_context(self.admission.hold(count, tenant=target.tenant, param=param))
            except Overloaded as error:
                self.metrics.count_refused(self.metrics.label(target.label), code=error.code, count=count)
                raise
            yield

    async def offload(self, size: int, work: Callable[[Callable[[], None]], T]) -> T:
        """Run `work`, which handles about `size` bytes, off the event loop; see WorkerPool.run."""
        return await self.workers.run(size, work)
