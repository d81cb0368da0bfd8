"""One gateway process from start to drain: the HTTP server and the application in front of an engine, one event loop.

The signal handler that stops the server therefore also knows which requests are in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from tunery.gateway.engine.interface import Engine
from tunery.gateway.engine.ipc.heartbeat import EngineTimeouts
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.manager import Plugins
from tunery.registry import Base
from tunery.registry.configuration.settings import ServeSettings, Settings
from tunery.registry.errors import InvalidInput, Unavailable
from tunery.registry.home import Home
from tunery.registry.keys.api_key import ApiKey
from tunery.registry.registry import Registry

if TYPE_CHECKING:
    from tunery.gateway.api.http.places import Places
    from tunery.gateway.api.state import Gateway
    from tunery.gateway.http_server import HttpServer

__all__ = ["Peers", "engine_timeouts", "run_gateway", "serve", "settle_memory"]

END_SECONDS = 60.0
"""How long the connections, and then the application, may take to end before the process exits anyway."""
LAST_SECONDS = 5.0
"""How long requests that were ended with an error may take to say so."""
THREADS = 32
"""Threads for what would block the event loop."""
GC_THRESHOLDS = (10_000, 20, 20)
"""Objects, and collections of the younger ones, after which Python looks for cycles."""

Say = Callable[[str], None]


class Peers(Protocol):
    """The other gateway processes in front of the same engine."""

    @property
    def is_first(self) -> bool:
        """Whether this process does what one alone has to do: jobs, batches, webhooks."""

    @property
    def places(self) -> Places:
        """The requests in flight in all of them."""

    async def exposition(self) -> bytes:
        """The metrics of all of them, as Prometheus scrapes them."""

    def publishing(self, gateway: Gateway) -> AbstractAsyncContextManager[None]:
        """Let the others read this process's metrics while the context lasts."""


def engine_timeouts(settings: ServeSettings) -> EngineTimeouts:
    """How long an engine may be silent, from the server's settings."""
    return EngineTimeouts(
        unready=settings.hang_unready_seconds,
        restart=settings.hang_restart_seconds,
        hold=settings.restart_hold_seconds,
    )


async def run_gateway(
    engine: Engine,
    settings: Settings,
    base: Base,
    renderer: Renderer,
    *,
    home: Home,
    plugins: Plugins,
    say: Say,
    own_key: ApiKey | None,
    peers: Peers | None = None,
) -> None:
    """Create the gateway in front of an engine, and serve until a signal to stop."""
    # Its threads mostly wait: for disks, and for the lock of the registry.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "waiting"))
    serving = settings.serve
    await asyncio.to_thread(import_module, "tunery.gateway.app")
    from tunery.gateway.api.state import Gateway
    from tunery.gateway.jobs.worker_thread import WorkerThread
    from tunery.gateway.metrics.recorder import Metrics
    from tunery.gateway.resolver import Resolver
    from tunery.gateway.tracing.setup import open_tracer
    from tunery.gateway.webhooks.delivery import WebhookThread

    # Closed by the application.
    registry = Registry.open(home, busy_seconds=serving.registry_wait_seconds)
    metrics = Metrics(tenants=serving.metric_tenants)
    tracer = open_tracer(serving, metrics)
    gateway = Gateway(
        serving,
        registry,
        engine,
        renderer,
        Resolver(registry, base),
        metrics,
        jobs=settings.jobs,
        limits=settings.limits,
        oidc=settings.oidc,
        plugins=plugins,
        own_key=own_key,
        tracer=tracer,
        places=peers.places if peers else None,
        exposition=peers.exposition if peers else None,
        is_first=peers is None or peers.is_first,
    )
    async with contextlib.AsyncExitStack() as beside:
        if tracer is not None:
            beside.push_async_callback(tracer.close)
        if peers is not None:
            await beside.enter_async_context(peers.publishing(gateway))
        if gateway.is_first:
            beside.enter_context(WebhookThread(home, settings.webhooks, on_outcome=metrics.count_webhook))
            if serving.worker:
                beside.enter_context(WorkerThread(home, settings.jobs, plugins, say=say))
        await serve(gateway, say=say, on_ready=settle_memory)


async def serve(gateway: Gateway, *, say: Say, on_ready: Callable[[], None] | None = None) -> None:
    """Serve on the settings' address, announce readiness once, after `on_ready`, and drain on SIGTERM or SIGINT.

    Raises Unavailable when the engine never becomes ready or the HTTP server fails, and InvalidInput for TLS files that
    cannot be served.
    """
    from tunery.gateway.api.admin.plane import admin_plane
    from tunery.gateway.app import create_app
    from tunery.gateway.http_server import HttpServer

    signals = _stop_signals()
    app, settings = create_app(gateway), gateway.settings
    servers = [HttpServer(app, settings)]
    if settings.admin_port:
        servers.append(HttpServer(admin_plane(app), _admin_address(settings)))
    running = asyncio.create_task(_serve_all(servers))
    announcing = asyncio.create_task(_announce(gateway, servers, say, on_ready))
    stopping = asyncio.create_task(signals.get())
    try:
        await _wait_for_stop(running, announcing, stopping)
        if not running.done():
            await _drain(gateway, signals, say, delay=stopping.result() == signal.SIGTERM)
    finally:
        for server in servers:
            server.stop()
        for task in (announcing, stopping):
            task.cancel()
        # What is written at the end, such as usage, is written after the last request.
        await asyncio.wait((running,), timeout=END_SECONDS)
        running.cancel()
        await asyncio.gather(running, announcing, stopping, return_exceptions=True)


async def _serve_all(servers: Sequence[HttpServer]) -> None:
    """Serve until one of the servers ends, and the others with it."""
    tasks = [asyncio.create_task(server.run()) for server in servers]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for server in servers:
        server.stop()
    await asyncio.gather(*tasks)


def _admin_address(settings: ServeSettings) -> ServeSettings:
    """The settings with the address of the admin API in place of the other."""
    return msgspec.structs.replace(settings, host=settings.admin_host or settings.host, port=settings.admin_port)


async def _wait_for_stop(
    running: asyncio.Task[None], announcing: asyncio.Task[None], stopping: asyncio.Task[signal.Signals]
) -> None:
    """Wait for a signal to stop; raise Unavailable when the server or the engine fails first, or what is wrong with
    the server's TLS files."""
    pending: set[asyncio.Task[Any]] = {running, announcing, stopping}
    while not (running.done() or stopping.done()):
        done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        pending -= done
        if announcing in done:
            announcing.result()
    if running.done():
        cause = running.exception()
        if isinstance(cause, InvalidInput):
            raise cause
        raise Unavailable(f"the HTTP server stopped unexpectedly: {cause or 'it gave no reason'}") from cause


async def _announce(
    gateway: Gateway, servers: Sequence[HttpServer], say: Say, on_ready: Callable[[], None] | None
) -> None:
    """Print the server's address once the engine can answer and the port accepts connections."""
    base = gateway.resolver.base
    ready = await gateway.engine.wait_ready()
    for server in servers:
        await server.listening.wait()
    if on_ready is not None:
        on_ready()
    server, *others = servers
    for admin in others:
        say(f"admin API: {admin.url}/admin/v1")
    say(
        f"ready: {server.url} serves {base.name} ({ready.quant}, {ready.dtype}, {ready.device}) and "
        f"{len(gateway.resolver.served())} adapters"
    )


def settle_memory() -> None:
    """Keep this process's garbage collections short: what there is when the server is ready stays, and is never looked at
    again. A request makes thousands of objects that are gone with it, so there is no hurry about the young either."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _drain(gateway: Gateway, signals: asyncio.Queue[signal.Signals], say: Say, *, delay: bool) -> None:
    """Shut down without losing a request, until the time is up or a second signal comes.

    The server is not ready from now on. It still takes requests for a while, with `delay`, since load balancers need
    time to notice; then it refuses new ones and lets those in flight finish.
    """
    gateway.draining = True
    settings, second_signal = gateway.settings, asyncio.create_task(signals.get())
    if delay and settings.drain_delay:
        say(f"draining: new requests are taken for {settings.drain_delay} s more; a second signal ends all now")
        await asyncio.wait((second_signal,), timeout=settings.drain_delay)
    gateway.refusing = True
    if left := gateway.requests.count:
        say(f"draining: {left} requests have {settings.drain_seconds} s to finish; a second signal ends them now")
    idle = asyncio.create_task(gateway.requests.idle())
    await asyncio.wait((idle, second_signal), timeout=settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
    if not idle.done():
        say(f"{gateway.requests.count} requests did not finish and end with an error")
    # Requests that still wait for tokens end with an error, in their stream or as a 503.
    await gateway.engine.stop()
    await asyncio.wait((idle,), timeout=LAST_SECONDS)
    for task in (idle, second_signal):
        task.cancel()


def _stop_signals() -> asyncio.Queue[signal.Signals]:
    """A queue that gets each SIGTERM and SIGINT."""
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    return signals
