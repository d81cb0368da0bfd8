"""Owns running the gateway: Granian in front, one worker with the application, one engine process behind it."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from litestar.types import ASGIApp

from tunery.gateway.api.state import Gateway
from tunery.gateway.app import create_app
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.supervisor import EngineProcess
from tunery.gateway.metrics import Metrics
from tunery.gateway.resolver import Resolver
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.data.renderer import Renderer
from tunery.plugins.manager import Plugins
from tunery.registry import Base
from tunery.registry.errors import InvalidInput
from tunery.registry.home import Home
from tunery.registry.registry import Registry
from tunery.registry.settings import ServeSettings

__all__ = ["engine_config", "make_app", "run"]

_PLAN = "_TUNERY_PLAN"


class _Plan(msgspec.Struct, frozen=True):
    """What the worker process needs to know; it is handed over in an environment variable."""

    home: str
    settings: ServeSettings
    base: Base


def run(settings: ServeSettings, *, home: Home, plugins: Plugins, say: Callable[[str], None]) -> None:
    """Serve until told to stop."""
    from granian import Granian
    from granian.constants import Interfaces, Loops
    from granian.log import LogLevels

    with Registry.open(home) as registry:
        base = resolve_base(settings.base, registry=registry, plugins=plugins, say=say)
    settings = msgspec.structs.replace(settings, port=_free_port(settings))
    os.environ[_PLAN] = msgspec.json.encode(_Plan(str(home.root), settings, base)).decode()
    Granian(
        "tunery.gateway.serve:make_app",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        loop=Loops.asyncio,
        factory=True,
        workers=1,
        respawn_failed_workers=True,
        workers_kill_timeout=settings.drain_seconds,
        websockets=False,
        log_level=LogLevels.warning,
    ).serve()


def make_app() -> ASGIApp:
    """The application, in the worker process."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    plan = msgspec.json.decode(os.environ[_PLAN], type=_Plan)
    settings, base = plan.settings, plan.base
    registry = Registry.open(Home(Path(plan.home)))
    renderer = Renderer(Path(base.path))
    resolver = Resolver(registry, base)
    engine = EngineProcess(engine_config(settings, base, eos_ids=renderer.stop_ids))
    gateway = Gateway(settings, registry, engine, renderer, resolver, Metrics())

    def announce() -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        sys.stderr.write(
            f"ready: http://{host}:{settings.port} serves {base.name} ({settings.quant}, {settings.dtype}) and "
            f"{len(registry.adapters())} adapters\n"
        )
        sys.stderr.flush()

    return create_app(gateway, on_ready=announce)


def engine_config(settings: ServeSettings, base: Base, *, eos_ids: tuple[int, ...]) -> EngineConfig:
    """The engine's settings, from the server's."""
    return EngineConfig(
        base_folder=base.path,
        base_name=base.name,
        base_digest=base.digest,
        quant=settings.quant,
        dtype=settings.dtype,
        device=settings.device,
        adapter_budget=settings.adapter_budget_mb * 2**20,
        max_batch=settings.max_batch,
        context_length=settings.context_length,
        kv_tokens=settings.kv_tokens,
        eos_ids=eos_ids,
        threads=settings.threads,
    )


def _free_port(settings: ServeSettings) -> int:
    """The port to serve on, known to be free a moment ago; port 0 asks the system for one."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise InvalidInput(
                f"{settings.host}:{settings.port} cannot be served on ({error.strerror}); choose another with --port, "
                "or 0 for any",
                code="address_in_use",
            ) from error
        port: int = probe.getsockname()[1]
    return port
