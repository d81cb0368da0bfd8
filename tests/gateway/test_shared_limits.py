"""Two gateways on one registry that count together: over HTTP they never admit more than the limit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.gateway.api.conftest import listening, one_document
from tests.registry.artifacts import make_base
from tunery.gateway.api.state import Gateway
from tunery.gateway.app import create_app
from tunery.gateway.engine.fake import FakeEngine
from tunery.gateway.http_server import HttpServer
from tunery.gateway.metrics.recorder import Metrics
from tunery.gateway.resolver import Resolver
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry import Base
from tunery.registry.configuration.settings import LimitsSettings, ServeSettings
from tunery.registry.home import Home
from tunery.registry.registry import Registry

__all__ = ["one_document"]

BODY = {"model": "tiny", "prompt": "abc", "max_tokens": 10}


@contextlib.asynccontextmanager
async def serving(home: Home, base: Base, renderer: Renderer, limits: LimitsSettings) -> AsyncIterator[str]:
    registry = Registry.open(home)  # closed by the application
    engine = FakeEngine(renderer.encode("Hello"), base_digest=base.digest)
    settings = ServeSettings(base="tiny", auth=False, port=0, max_batch=32, max_waiting=400)
    gateway = Gateway(settings, registry, engine, renderer, Resolver(registry, base), Metrics(), limits=limits)
    server = HttpServer(create_app(gateway), settings)
    running = asyncio.create_task(server.run())
    await listening(server, running)
    yield server.url
    server.stop()
    await running


@pytest.mark.slow
async def test_two_gateways_admit_the_limit_together(
    home: Home, registry: Registry, tmp_path: Path, tiny_base_folder: Path
) -> None:
    base, renderer = registry.add_base(make_base(tmp_path / "base")), Renderer(tiny_base_folder)
    limits = LimitsSettings(store="database", requests_per_minute=40, tokens_per_minute=600)
    async with (
        serving(home, base, renderer, limits) as one,
        serving(home, base, renderer, limits) as other,
        httpx.AsyncClient(verify=False, timeout=120) as client,
    ):
        asking = [client.post(f"{url}/v1/completions", json=BODY) for url in (one, other) for _ in range(60)]
        answers = await asyncio.gather(*asking)
        admitted = [answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(admitted) <= 40
        assert sum(admitted) <= 600
        # One of the two is all but used up.
        assert len(admitted) == 40 or sum(admitted) > 600 - 2 * 13
        assert {answer.status_code for answer in refused} == {429}
        assert all(0 < int(answer.headers["retry-after"]) <= 65 for answer in refused)
        shown = [answer for answer in answers if answer.status_code == 200][-1]
        assert shown.headers["x-ratelimit-limit-requests"] == "40"
