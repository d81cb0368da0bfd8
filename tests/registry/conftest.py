"""One base, and publishing small adapters for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub_server import HubServer
from tests.registry.artifacts import make_adapter, make_base
from tunery.registry import Base, NewVersion, Version
from tunery.registry.registry import Registry

Publish = Callable[..., Version]


@pytest.fixture
def base(registry: Registry, tmp_path: Path) -> Base:
    return registry.add_base(make_base(tmp_path / "base"))


@pytest.fixture
def publish(registry: Registry, base: Base, tmp_path: Path) -> Publish:
    """Publish a small adapter: `publish("acme/support", seed=3, alias="production")`."""

    def publish(adapter: str = "acme/support", *, seed: int = 0, alias: str | None = None) -> Version:
        folder = make_adapter(tmp_path / f"adapter-{seed}", seed=seed)
        return registry.publish(
            NewVersion(
                adapter=adapter,
                folder=folder,
                base=base,
                method="lora",
                manifest={"seed": seed},
                metrics={"eval_loss": 1.0},
                actor="test",
                alias=alias,
            )
        )

    return publish


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub of one's own over loopback, with nothing on it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
