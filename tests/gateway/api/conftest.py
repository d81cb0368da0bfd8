"""The real application on a loopback socket, with a FakeEngine in place of the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import httpx2
import msgspec
import pytest
from litestar._openapi.plugin import OpenAPIPlugin
from litestar.openapi.spec import OpenAPI
from openai import AsyncOpenAI

from tests.registry.artifacts import make_adapter, make_base
from tunery.gateway.api.state import Gateway
from tunery.gateway.app import create_app
from tunery.gateway.engine.fake import FakeEngine
from tunery.gateway.http_server import HttpServer
from tunery.gateway.metrics.recorder import Metrics
from tunery.gateway.resolver import Resolver
from tunery.plugins.data.render.renderer import Renderer
from tunery.registry import Base, NewVersion, Version
from tunery.registry.configuration.oidc import OidcSettings
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.jobs.success import Success
from tunery.registry.registry import Registry

REPLY = "Hello, world"


@dataclass
class Served:
    """A running gateway, what to drive it with, and a client of it."""

    gateway: Gateway
    engine: FakeEngine
    url: str
    client: AsyncOpenAI
    base: Base
    folder: Path

    def publish(self, adapter: str, *, seed: int = 0, alias: str | None = None, job: Success | None = None) -> Version:
        """Publish a version trained on the served base."""
        folder = make_adapter(self.folder / f"{adapter.replace('/', '-')}-{seed}", seed=seed)
        return self.gateway.registry.publish(
            NewVersion(
                adapter=adapter,
                folder=folder,
                base=self.base,
                method="lora",
                manifest={},
                metrics={},
                actor="test",
                alias=alias,
            ),
            job=job,
        )

    def says(self, text: str) -> None:
        """Make the engine say `text`."""
        self.engine.reply = self.gateway.renderer.encode(text)

    async def post(self, path: str, body: object) -> httpx.Response:
        """A request as it is, without the client's help."""
        async with httpx.AsyncClient(verify=False) as client:
            return await client.post(self.url + path, json=body)


@pytest.fixture(scope="session", autouse=True)
def one_document() -> Iterator[None]:
    """Generate the OpenAPI document once: all applications here have the same routes, and it is half of their start."""
    generate, documents = OpenAPIPlugin._build_openapi, dict[tuple[str, ...], OpenAPI]()

    def generate_once(plugin: OpenAPIPlugin) -> OpenAPI:
        routes = tuple(plugin.included_routes)
        if routes not in documents:
            documents[routes] = generate(plugin)
        return documents[routes]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenAPIPlugin, "_build_openapi", generate_once)
        yield


@pytest.fixture
def settings() -> ServeSettings:
    """Override in a module to serve differently."""
    return ServeSettings(base="tiny", auth=False, max_batch=4, max_waiting=400)


@pytest.fixture
def tokenizer_folder(tiny_base_folder: Path) -> Path:
    """Where the tokenizer and the chat template are. Override it to serve another template."""
    return tiny_base_folder


@pytest.fixture
async def served(
    registry: Registry, tokenizer_folder: Path, tmp_path: Path, settings: ServeSettings, oidc: OidcSettings
) -> AsyncIterator[Served]:
    """The application on a free port."""
    base = registry.add_base(make_base(tmp_path / "base"))
    renderer = Renderer(tokenizer_folder)
    engine = FakeEngine(renderer.encode(REPLY), base_digest=base.digest)
    gateway = Gateway(settings, registry, engine, renderer, Resolver(registry, base), Metrics(), oidc=oidc)
    server = HttpServer(create_app(gateway), msgspec.structs.replace(settings, host="127.0.0.1", port=0))
    running = asyncio.create_task(server.run())
    await listening(server, running)
    # Reading the machine's certificates takes longer than a request over loopback.
    http = httpx2.AsyncClient(verify=False, timeout=600)
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, http_client=http)
    yield Served(gateway, engine, server.url, client, base, tmp_path)
    await client.close()
    server.stop()
    await running


async def listening(server: HttpServer, running: asyncio.Task[None]) -> None:
    """Wait until a server listens; raise what keeps it from that."""
    waiting = asyncio.create_task(server.listening.wait())
    await asyncio.wait((waiting, running), return_when=asyncio.FIRST_COMPLETED)
    if not waiting.done():
        waiting.cancel()
        await running
