"""Runs the gateway from start to drain: Granian, the application behind it, and the engine process.

Everything but the engine runs in one process with one event loop, so the signal handler that stops the server also
knows which requests are in flight. The engine starts first: while its process imports torch, this process, which never
does, imports everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.ipc.heartbeat import EngineTimeouts
from tunery.gateway.engine.ipc.supervisor import SupervisedEngine
from tunery.gateway.sockets import free_port, limit_connections, resolve_host
from tunery.gateway.tenancy.first_key import require_keys
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.manager import Plugins
from tunery.plugins.runtime.allocator import bound_allocator
from tunery.registry import Base
from tunery.registry.errors import Unavailable
from tunery.registry.home import Home
from tunery.registry.registry import Registry
from tunery.registry.settings import JobsSettings, ServeSettings
from tunery.registry.webhook_settings import WebhooksSettings

if TYPE_CHECKING:
    from granian.server.embed import Server
    from litestar.types import ASGIApp

    from tunery.gateway.api.state import Gateway

__all__ = ["engine_config", "run", "serve"]

STOP_SECONDS = 5.0
"""How long Granian may take to close connections without requests before the process exits anyway."""
BACKLOG = 1024
MAX_HEAD = 64 * 1024
"""Bytes of a request's head; each connection may hold as many."""

Say = Callable[[str], None]


def run(
    settings: ServeSettings,
    jobs: JobsSettings,
    webhooks: WebhooksSettings,
    *,
    home: Home,
    plugins: Plugins,
    say: Say,
) -> None:
    """Serve until SIGTERM or SIGINT; raise Unavailable when the engine never becomes ready."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    bound_allocator()
    host = resolve_host(settings.host)
    with Registry.open(home) as registry:
        require_keys(registry, settings, host=host, tenant=jobs.tenant, say=say)
        base = resolve_base(settings.base, registry=registry, plugins=plugins, say=say)
    settings = msgspec.structs.replace(settings, host=host, port=free_port(host, settings.port))
    asyncio.run(_run(settings, jobs, webhooks, base, home=home, plugins=plugins, say=say))


async def _run(
    settings: ServeSettings,
    jobs: JobsSettings,
    webhooks: WebhooksSettings,
    base: Base,
    *,
    home: Home,
    plugins: Plugins,
    say: Say,
) -> None:
    """Start the engine, create the gateway in front of it, and serve."""
    renderer = Renderer(Path(base.path))
    timeouts = EngineTimeouts(
        unready=settings.hang_unready_seconds,
        restart=settings.hang_restart_seconds,
        hold=settings.restart_hold_seconds,
    )
    engine = SupervisedEngine(engine_config(settings, base, home=home, eos_ids=renderer.stop_ids), timeouts=timeouts)
    await engine.start()
    try:
        await asyncio.to_thread(import_module, "tunery.gateway.app")
        from tunery.gateway.api.state import Gateway
        from tunery.gateway.jobs.worker_thread import WorkerThread
        from tunery.gateway.metrics.recorder import Metrics
        from tunery.gateway.resolver import Resolver
        from tunery.gateway.webhooks.delivery import WebhookThread

        # Imported modules stay alive, so later garbage collections need not spend time on them.
        gc.freeze()
        registry = Registry.open(home)  # closed by the application
        resolver = Resolver(registry, base)
        gateway = Gateway(settings, registry, engine, renderer, resolver, Metrics(), jobs=jobs, plugins=plugins)
        with contextlib.ExitStack() as beside:
            beside.enter_context(WebhookThread(home, webhooks, on_outcome=gateway.metrics.count_webhook))
            if settings.worker:
                beside.enter_context(WorkerThread(home, jobs, plugins, say=say))
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
    )


async def serve(gateway: Gateway, *, say: Say) -> None:
    """Serve on the settings' address, announce readiness once, and drain on SIGTERM or SIGINT.

    Raises Unavailable when the engine never becomes ready or the HTTP server fails.
    """
    from tunery.gateway.app import create_app

    signals = _stop_signals()
    server = _server(create_app(gateway), gateway.settings)
    running = asyncio.create_task(server.serve())
    announcing = asyncio.create_task(_announce(gateway, say))
    stopping = asyncio.create_task(signals.get())
    try:
        await _wait_for_stop(running, announcing, stopping)
        if not running.done():
            await _drain(gateway, signals, say)
    finally:
        server.stop()
        await asyncio.wait((running,), timeout=STOP_SECONDS)
        for task in (running, announcing, stopping):
            task.cancel()
        await asyncio.gather(running, announcing, stopping, return_exceptions=True)


async def _wait_for_stop(
    running: asyncio.Task[None], announcing: asyncio.Task[None], stopping: asyncio.Task[None]
) -> None:
    """Wait for a signal to stop; raise Unavailable when the server or the engine fails first."""
    pending: set[asyncio.Task[None]] = {running, announcing, stopping}
    while not (running.done() or stopping.done()):
        done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        pending -= done
        if announcing in done:
            announcing.result()
    if running.done():
        cause = running.exception()
        raise Unavailable(f"the HTTP server stopped unexpectedly: {cause or 'it gave no reason'}") from cause


async def _announce(gateway: Gateway, say: Say) -> None:
    """Print the server's address once the engine can answer and the port accepts connections."""
    settings, base = gateway.settings, gateway.resolver.base
    ready = await gateway.engine.wait_ready()
    await _wait_for_port(settings)
    limit_connections(settings.port, write_seconds=settings.write_seconds)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    say(
        f"ready: http://{host}:{settings.port} serves {base.name} ({ready.quant}, {ready.dtype}, {ready.device}) and "
        f"{len(gateway.resolver.served())} adapters"
    )


async def _wait_for_port(settings: ServeSettings) -> None:
    # A server that listens on every address is reachable on loopback.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    while True:
        try:
            _, writer = await asyncio.open_connection(host, settings.port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return


async def _drain(gateway: Gateway, signals: asyncio.Queue[None], say: Say) -> None:
    """Accept no new requests and let those in flight finish, until the time is up or a second signal comes."""
    gateway.draining = True
    seconds = gateway.settings.drain_seconds
    if gateway.in_flight:
        say(f"draining: {gateway.in_flight} requests have {seconds} s to finish; a second signal ends them now")
    idle = asyncio.create_task(gateway.admission.idle())
    second_signal = asyncio.create_task(signals.get())
    await asyncio.wait((idle, second_signal), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if not idle.done():
        say(f"{gateway.in_flight} requests did not finish and end with an error")
    for task in (idle, second_signal):
        task.cancel()
    # Requests that still wait for tokens end with an error, in their stream or as a 503.
    await gateway.engine.stop()


def _stop_signals() -> asyncio.Queue[None]:
    """A queue that gets an item for each SIGTERM or SIGINT."""
    signals: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, None)
    return signals


def _server(app: ASGIApp, settings: ServeSettings) -> Server:
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings
    from granian.log import LogLevels
    from granian.server.embed import Server

    return Server(
        app,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        websockets=False,
        backlog=BACKLOG,
        backpressure=settings.max_connections,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=1000 * settings.read_seconds, max_buffer_size=MAX_HEAD),
        log_level=LogLevels.error,
    )
