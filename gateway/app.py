"""Owns the application: which routes there are and what lives as long as it does."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Callable
from importlib.metadata import version

from litestar import Litestar, get
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import ScalarRenderPlugin
from litestar.response import Redirect
from litestar.types import ASGIApp

from tunery.gateway.api.chat import chat_completions
from tunery.gateway.api.completions import completions
from tunery.gateway.api.errors import EXCEPTION_HANDLERS
from tunery.gateway.api.health import live, metrics, ready
from tunery.gateway.api.middleware import Around
from tunery.gateway.api.models import list_models, show_model
from tunery.gateway.api.state import Gateway
from tunery.registry.errors import Unavailable

__all__ = ["create_app"]

MAX_BODY = 16 * 2**20


@get("/", include_in_schema=False)
async def root() -> Redirect:
    """The documentation."""
    return Redirect("/docs")


def create_app(gateway: Gateway, *, on_ready: Callable[[], None] = lambda: None) -> ASGIApp:
    """The application around a gateway's parts; `on_ready` is called once, when the engine can answer."""

    async def provide() -> Gateway:
        return gateway

    @contextlib.asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None, None]:
        gateway.engine.on_stats(lambda stats: gateway.metrics.take(gateway.engine.ready, stats))
        await gateway.engine.start()
        announcing = asyncio.create_task(_announce(gateway, on_ready))
        try:
            yield
        finally:
            gateway.draining = True
            announcing.cancel()
            await gateway.engine.stop()
            gateway.registry.close()

    app = Litestar(
        route_handlers=[root, chat_completions, completions, list_models, show_model, live, ready, metrics],
        dependencies={"gateway": Provide(provide)},
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[lifespan],
        openapi_config=OpenAPIConfig(
            title="Tunery",
            version=version("tunery"),
            description="Fine-tunes of one quantized base, each request naming its adapter.",
            path="/docs",
            render_plugins=[ScalarRenderPlugin()],
        ),
        request_max_body_size=MAX_BODY,
        logging_config=None,
    )
    return Around(app, gateway)


async def _announce(gateway: Gateway, on_ready: Callable[[], None]) -> None:
    try:
        await gateway.engine.wait_ready()
    except Unavailable as error:
        sys.stderr.write(f"error: {error.message}\n")
    else:
        on_ready()
