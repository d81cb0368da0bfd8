"""The parts that every handler works with, wired together once when the application is created."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from tunery.gateway.api.http.admission import Admission
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
from tunery.registry.keys.api_key import ApiKey
from tunery.registry.oidc_settings import OidcSettings
from tunery.registry.registry import Registry
from tunery.registry.settings import JobsSettings, ServeSettings

__all__ = ["Gateway"]

T = TypeVar("T")

MAX_JOINING = 2
"""Uploads whose parts are joined at once."""
BACKGROUND_AHEAD = 2
"""Requests in the background that the engine knows of, for each that may run."""


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
    oidc: OidcSettings = field(default_factory=OidcSettings)
    plugins: Plugins = field(default_factory=load_plugins)
    draining: bool = False
    own_key: ApiKey | None = None
    """A key that is good for this server besides the registry's."""

    file_checks: FileChecks = field(init=False)
    admission: Admission = field(init=False)
    workers: WorkerPool = field(default_factory=WorkerPool)
    background_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a call in the background is prepared, so that one thread of `workers` at most works for it."""

    joining: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_JOINING))
    """Held while the parts of an upload are joined, which takes as long as its disk does."""

    def __post_init__(self) -> None:
        self.admission = Admission(self.settings, self.metrics.set_in_flight)
        self.file_checks = FileChecks(self.registry, self.plugins)
        self._background = asyncio.Semaphore(BACKGROUND_AHEAD * self.settings.background_slots)

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

    async def wait_for_engine(self, target: Target, *, background: bool = False) -> Ready:
        """The engine's description, after waiting up to `restart_hold_seconds` for one that is starting.

        The request counts as in flight while it waits; one in the background does not wait. Raises Unavailable, with
        when to retry, if the engine does not start in time.
        """
        if self.engine.ready is None and not self.draining and not background:
            with self.hold(1, target), contextlib.suppress(TimeoutError, Unavailable):
                async with asyncio.timeout(self.settings.restart_hold_seconds):
                    await self.engine.wait_ready()
        return self.engine_ready()

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
    def hold(self, count: int, target: Target, *, param: str = "n", background: bool = False) -> Iterator[None]:
        """Count `count` more requests for `target` as in flight, unless in the background; the metrics count refusals.

        Raises as Admission.hold.
        """
        if background:
            yield
            return
        with contextlib.ExitStack() as holding:
            try:
                holding.enter_context(self.admission.hold(count, tenant=target.tenant, param=param))
            except Overloaded as error:
                self.metrics.count_refused(self.metrics.label(target.label), code=error.code, count=count)
                raise
            yield

    @contextlib.asynccontextmanager
    async def place(self, *, background: bool) -> AsyncIterator[None]:
        """Wait, in the background only, until the engine may be given one more request."""
        async with self._background if background else contextlib.nullcontext():
            yield

    async def offload(self, size: int, work: Callable[[Callable[[], None]], T]) -> T:
        """Run `work`, which handles about `size` bytes, off the event loop; see WorkerPool.run."""
        return await self.workers.run(size, work)
