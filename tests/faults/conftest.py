"""A gateway that asks for keys and waits a second for the registry's lock, with an adapter and a tenant that uses it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway.api.conftest import Served, one_document, served, tokenizer_folder
from tests.gateway.api.test_metrics import samples
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.home import Home
from tunery.registry.registry import Registry

__all__ = ["Site", "one_document", "served", "settings", "site", "tokenizer_folder"]

ROW = '{{"messages": [{{"role": "user", "content": "hi {0}"}}, {{"role": "assistant", "content": "hello {0}"}}]}}\n'
FILE = {"file": ("rows.jsonl", "".join(map(ROW.format, range(12))).encode())}


class Site:
    """What a tenant and an operator do with the gateway."""

    def __init__(self, served: Served) -> None:
        self.served = served
        keys = served.gateway.registry.keys
        self.key, token = keys.create(tenant="acme", scopes=("infer", "train", "publish", "metrics"), actor="test")
        headers = {"authorization": f"Bearer {token}"}
        self.http = httpx.AsyncClient(base_url=served.url, headers=headers, verify=False, timeout=120)

    async def infer(self, model: str = "acme/support") -> int:
        """The status of a request for a model."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        return (await self.http.post("/v1/chat/completions", json=body)).status_code

    async def upload(self) -> httpx.Response:
        """Upload a file of examples."""
        return await self.http.post("/v1/files", files=FILE, data={"purpose": "fine-tune"})

    async def metric(self, name: str, **labels: str) -> float:
        """A sample, as Prometheus would see it now."""
        text = (await self.http.get("/metrics")).text
        return samples(text)[name, tuple(sorted(labels.items()))]


@pytest.fixture
def settings() -> ServeSettings:
    return ServeSettings(base="tiny", max_batch=4, max_waiting=400)


@pytest.fixture
def home_folder(tmp_path: Path) -> Path:
    """Where the home is. Override it to put it elsewhere."""
    return tmp_path / "home"


@pytest.fixture
def registry(home_folder: Path, new_home: Path) -> Iterator[Registry]:
    """As the gateway opens it, with little patience."""
    shutil.copytree(new_home, home_folder, dirs_exist_ok=True)
    with Registry.open(Home(home_folder), busy_seconds=1.0) as registry:
        yield registry


@pytest.fixture
async def site(served: Served) -> AsyncIterator[Site]:
    for name in ("acme/support", "acme/sales"):
        served.publish(name)
    site = Site(served)
    assert await site.infer() == 200
    yield site
    await site.http.aclose()
