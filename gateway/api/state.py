"""The parts that every handler works with, wired together once when the application is created."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from tunery.gateway.api.http.admission import Admission
from tunery.gateway.api.http.in_flight import RequestsInFlight
from tunery.gateway.api.http.places import Places
from tunery.gateway.api.http.trace import Tracer
from tunery.gateway.api.http.worker_pool import WorkerPool
from tunery.gateway.engine.interface import Engine
from tunery.gateway.engine.messages import Ready
from tunery.gateway.jobs.file_checks import FileChecks
from tunery.gateway.metrics.recorder import Metrics, Subject
from tunery.gateway.resolver import Resolver, Target
from tunery.gateway.tenancy.keyring import Keyring
from tunery.gateway.tenancy.limits.book import LimitBook
from tunery.gateway.tenancy.limits.limiter import Limiter
from tunery.gateway.tenancy.limits.stores import open_counters
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.shares import SharedAdapters
from tunery.gateway.tenancy.usage.writer import UsageWriter
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.discovery import load_plugins
from tunery.plugins.manager import Plugins
from tunery.registry.configuration.limits import LimitsSettings
from tunery.registry.configuration.oidc import OidcSettings
from tunery.registry.configuration.settings import JobsSettings, ServeSettings
from tunery.registry.errors import Overloaded, TuneryError, Unavailable
from tunery.registry.keys.api_key import ApiKey
from tunery.registry.registry import Registry

__all__ = ["Gateway"]

T = TypeVar("T")

MAX_JOINING = 2
"""Uploads whose parts are joined at once."""
BACKGROUND_AHEAD = 2
"""Requests in the background that the engine knows of, for each that may run."""


@dataclass
class Gateway:
    """The parts of a running gateway.

    While `draining`, it is about to shut down: it is not ready, and begins nothing in the background. Once it is
    `refusing`, it accepts no new requests either.
    """

    settings: ServeSettings
    registry: Registry
    engine: Engine
    renderer: Renderer
    resolver: Resolver
    metrics: Metrics
    jobs: JobsSettings = field(default_factory=JobsSettings)
    oidc: OidcSettings = field(default_factory=OidcSettings)
    plugins: Plugins = field(default_factory=load_plugins)
    tracer: Tracer | None = None
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    draining: bool = False
    refusing: bool = False
    requests: RequestsInFlight = field(default_factory=RequestsInFlight)
    keyring: Keyring | None = None
    own_key: ApiKey | None = None
    """A key that is good for this server besides the registry's."""

    places: Places | None = None
    """Where several processes count their requests in flight together."""
    exposition: Callable[[], Awaitable[bytes]] | None = None
    """The metrics of all of them."""
    is_first: bool = True
    """Whether this one does what one alone has to do."""

    usage: UsageWriter = field(init=False)
    limiter: Limiter = field(init=False)
    shares: SharedAdapters = field(init=False)
    file_checks: FileChecks = field(init=False)
    admission: Admission = field(init=False)
    workers: WorkerPool = field(default_factory=WorkerPool)
    background_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a call in the background is prepared, so that one thread of `workers` at most works for it."""

    joining: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_JOINING))
    """Held while the parts of an upload are joined, which takes as long as its disk does."""

    def __post_init__(self) -> None:
        self.usage = UsageWriter(self.registry.usage, days=self.limits.usage_days)
        self.limiter = Limiter(
            LimitBook(self.registry, self.limits),
            open_counters(self.limits, self.registry),
            self.usage,
            on_refused=self.metrics.count_limit,
        )
        self.admission = Admission(
            self.settings, self.metrics.set_in_flight, share=self.limiter.queue_share, places=self.places
        )
        self.shares = SharedAdapters(self.registry)
        self.file_checks = FileChecks(self.registry, self.plugins)
        self.registry.database.observe(self.metrics.note_transaction)
        self._background = asyncio.Semaphore(BACKGROUND_AHEAD * self.settings.background_slots)

    @property
    def in_flight(self) -> int:
        """How many requests to the engine have been accepted and not yet answered; `requests` counts those over HTTP."""
        return self.admission.count

    def engine_ready(self) -> Ready:
        """The engine's description; raise Unavailable while it cannot answer or the server refuses requests."""
        self.check_accepting()
        ready = self.engine.ready
        if ready is None:
            raise self._outage()
        return ready

    def check_accepting(self) -> None:
        """Raise Unavailable once the server takes no new requests."""
        if self.refusing:
            raise _draining()

    def cause_of(self, error: TuneryError) -> TuneryError:
        """What ended a request to the engine: where the engine was stopped because the server shuts down, that."""
        return _draining() if self.refusing and isinstance(error, Unavailable) else error

    async def wait_for_engine(self, target: Target, *, background: bool = False) -> Ready:
        """The engine's description, after waiting up to `restart_hold_seconds` for one that is starting.

        The request counts as in flight while it waits; one in the background does not wait. Raises Unavailable, with
        when to retry, if the engine does not start in time.
        """
        if self.engine.ready is None and not self.refusing and not background:
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

    def subject(self, target: Target) -> Subject:
        """Whose a request for `target` is, as the metrics count it."""
        version = target.version
        return Subject(self.metrics.label(target.label), target.tenant, version.number if version else None)

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
                holding.enter_context(self.limiter.counting())
                holding.enter_context(self.admission.hold(count, tenant=target.tenant, param=param))
            except Overloaded as error:
                self.metrics.count_refused(self.subject(target), code=error.code, count=count)
                raise
            yield

    def headers(self, target: Target, by: Principal) -> dict[str, str]:
        """The headers of an answer: what answered, and how the limits of who asked stand."""
        return target.headers() | self.limiter.headers(by)

    def place(self, *, background: bool) -> contextlib.AbstractAsyncContextManager[None]:
        """Wait, in the background only, until the engine may be given one more request."""
        return self._background if background else contextlib.nullcontext()

    async def offload(self, size: int, work: Callable[[Callable[[], None]], T]) -> T:
        """Run `work`, which handles about `size` bytes, off the event loop; see WorkerPool.run."""
        return await self.workers.run(size, work)


def _draining() -> Unavailable:
    return Unavailable("this server is shutting down; send the request again", code="draining")
