"""Runs the gateway from start to drain: the HTTP server, the application behind it, and the engine process.

Everything but the engine runs in one process with one event loop, so the signal handler that stops the server also
knows which requests are in flight. The engine starts first: while its process imports torch, this process, which never
does, imports everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.ipc.heartbeat import EngineTimeouts
from tunery.gateway.engine.ipc.supervisor import SupervisedEngine
from tunery.gateway.sockets import free_port, resolve_host
from tunery.gateway.tenancy.first_key import require_keys
from tunery.gateway.tls import check_tls, tls_files
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.manager import Plugins
from tunery.plugins.runtime.allocator import bound_allocator
from tunery.plugins.runtime.log_format import set_up_logging
from tunery.registry import Base
from tunery.registry.errors import InvalidInput, Unavailable
from tunery.registry.home import Home
from tunery.registry.keys.api_key import ApiKey
from tunery.registry.registry import Registry
from tunery.registry.settings import ServeSettings, Settings

if TYPE_CHECKING:
    from tunery.gateway.api.state import Gateway
    from tunery.gateway.http_server import HttpServer

__all__ = ["engine_config", "run", "serve"]

END_SECONDS = 60.0
"""How long the connections, and then the application, may take to end before the process exits anyway."""
LAST_SECONDS = 5.0
"""How long requests that were ended with an error may take to say so."""
THREADS = 32
"""Threads for what would block the event loop."""

Say = Callable[[str], None]


def run(settings: Settings, *, home: Home, plugins: Plugins, say: Say, own_key: ApiKey | None = None) -> None:
    """Serve until SIGTERM or SIGINT; raise Unavailable when the engine never becomes ready.

    `own_key` is good for this server besides the registry's keys.
    """
    serving = settings.serve
    set_up_logging(serving.log_format, serving.log_level)
    bound_allocator()
    host = resolve_host(serving.host)
    admin_host = resolve_host(serving.admin_host) if serving.admin_host else host
    if (tls := tls_files(serving)) is not None:
        check_tls(tls)
    with Registry.open(home) as registry:
        for each in dict.fromkeys((host, admin_host)):
            require_keys(registry, settings, host=each, own_key=own_key, say=say)
        base = resolve_base(serving.base, registry=registry, plugins=plugins, say=say)
    serving = msgspec.structs.replace(serving, host=host, port=free_port(host, serving.port), admin_host=admin_host)
    if serving.admin_port:
        _check_admin_port(serving)
    settings = msgspec.structs.replace(settings, serve=serving)
    asyncio.run(_run(settings, base, home=home, plugins=plugins, say=say, own_key=own_key))


def _check_admin_port(settings: ServeSettings) -> None:
    """Raise InvalidInput unless the admin API can be at its own port."""
    if (settings.admin_host, settings.admin_port) == (settings.host, settings.port):
        raise InvalidInput(
            f"serve.admin_port and serve.port are both {settings.port}; choose another for the admin API, or leave "
            "admin_port out to have it at the same port",
            code="address_in_use",
            param="admin_port",
        )
    free_port(settings.admin_host, settings.admin_port)


async def _run(
    settings: Settings, base: Base, *, home: Home, plugins: Plugins, say: Say, own_key: ApiKey | None
) -> None:
    """Start the engine, create the gateway in front of it, and serve."""
    # Its threads mostly wait: for disks, and for the lock of the registry.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "waiting"))
    serving = settings.serve
    renderer = Renderer(Path(base.path))
    timeouts = EngineTimeouts(
        unready=serving.hang_unready_seconds,
        restart=serving.hang_restart_seconds,
        hold=serving.restart_hold_seconds,
    )
    engine = SupervisedEngine(engine_config(serving, base, home=home, eos_ids=renderer.stop_ids), timeouts=timeouts)
    await engine.start()
    try:
        await asyncio.to_thread(import_module, "tunery.gateway.app")
        from tunery.gateway.api.state import Gateway
        from tunery.gateway.jobs.worker_thread import WorkerThread
        from tunery.gateway.metrics.recorder import Metrics
        from tunery.gateway.resolver import Resolver
        from tunery.gateway.tracing.setup import open_tracer
        from tunery.gateway.webhooks.delivery import WebhookThread

        # Imported modules stay alive, so later garbage collections need not spend time on them.
        gc.freeze()
        # Closed by the application.
        registry = Registry.open(home, busy_seconds=serving.registry_wait_seconds)
        resolver = Resolver(registry, base)
        metrics = Metrics(tenants=serving.metric_tenants)
        tracer = open_tracer(serving, metrics)
        gateway = Gateway(
            serving,
            registry,
            engine,
            renderer,
            resolver,
            metrics,
            jobs=settings.jobs,
            limits=settings.limits,
            oidc=settings.oidc,
            plugins=plugins,
            own_key=own_key,
            tracer=tracer,
        )
        async with contextlib.AsyncExitStack() as beside:
            if tracer is not None:
                beside.push_async_callback(tracer.close)
            beside.enter_context(WebhookThread(home, settings.webhooks, on_outcome=gateway.metrics.count_webhook))
            if serving.worker:
                beside.enter_context(WorkerThread(home, settings.jobs, plugins, say=say))
            await serve(gateway, say=say)
    finally:
        await engine.stop()


def engine_config(settings: ServeSettings, base: Base, *, home: Home, eos_ids: tuple[int, ...]) -> EngineConfig:
    """The engine's configuration, derived from the server's settings."""
    return EngineConfig(
        base_folder=base.path,
        base_name=base.name,
        base_digest=base.digest,
        cache_folder=str(home.packed),
        quant=settings.quant,
        dtype=settings.dtype,
        device=settings.device,
        adapter_budget=settings.adapter_budget_mb * 2**20,
        adapter_ram=settings.adapter_ram_mb * 2**20,
        max_batch=settings.max_batch,
        context_length=settings.context_length,
        kv_tokens=settings.kv_tokens,
        token_budget=settings.token_budget,
        background_slots=settings.background_slots,
        prefix_cache=settings.prefix_cache,
        tenant_weights=settings.tenant_weights,
        eos_ids=eos_ids,
        threads=settings.threads,
        log_format=settings.log_format,
        log_level=settings.log_level,
    )


async def serve(gateway: Gateway, *, say: Say) -> None:
    """Serve on the settings' address, announce readiness once, and drain on SIGTERM or SIGINT.

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
    announcing = asyncio.create_task(_announce(gateway, servers, say))
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


async def _announce(gateway: Gateway, servers: Sequence[HttpServer], say: Say) -> None:
    """Print the server's address once the engine can answer and the port accepts connections."""
    base = gateway.resolver.base
    ready = await gateway.engine.wait_ready()
    for server in servers:
        await server.listening.wait()
    server, *others = servers
    for admin in others:
        say(f"admin API: {admin.url}/admin/v1")
    say(
        f"ready: {server.url} serves {base.name} ({ready.quant}, {ready.dtype}, {ready.device}) and "
        f"{len(gateway.resolver.served())} adapters"
    )


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
