"""Starts the engine's process, and in front of it the gateway: in this process, or in several.

The engine starts first: while its process imports torch, this one, which never does, imports everything else.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.ipc.supervisor import SupervisedEngine
from tunery.gateway.gateway_process import engine_timeouts, run_gateway
from tunery.gateway.sockets import free_port, resolve_host
from tunery.gateway.tenancy.first_key import require_keys
from tunery.gateway.tls import check_tls, tls_files
from tunery.gateway.workers.workers import Workers
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.manager import Plugins
from tunery.plugins.runtime.allocator import bound_allocator
from tunery.plugins.runtime.log_format import set_up_logging
from tunery.registry import Base
from tunery.registry.configuration.settings import ServeSettings, Settings
from tunery.registry.errors import InvalidInput
from tunery.registry.home import Home
from tunery.registry.keys.api_key import ApiKey
from tunery.registry.registry import Registry

__all__ = ["engine_config", "run"]

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
    """Start the engine, and serve from this process, or from several."""
    serving = settings.serve
    renderer = Renderer(Path(base.path))
    config = engine_config(serving, base, home=home, eos_ids=renderer.stop_ids)
    with tempfile.TemporaryDirectory(prefix="tunery-") as folder:
        attach = Path(folder) / "engine.sock" if serving.workers > 1 else None
        engine = SupervisedEngine(config, timeouts=engine_timeouts(serving), attach=attach)
        await engine.start()
        try:
            if attach is not None:
                workers = Workers(settings, base, home=home, own_key=own_key, folder=Path(folder))
                await workers.run(engine, say=say)
            else:
                await run_gateway(
                    engine, settings, base, renderer, home=home, plugins=plugins, say=say, own_key=own_key
                )
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
