"""Files whose bytes do not match their digest are never computed with: adapters, packed bases, bases."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.gateway.engine.peft_oracle import Engine, assert_same, describe, make_adapter, make_base, prompt, request
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.messages import Failed, Load, Loaded
from tunery.gateway.engine.models.native.kernels import load_kernels
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.registry import Base, base_files
from tunery.registry.base_files import base_digest
from tunery.registry.errors import StorageFailed
from tunery.registry.home import Home
from tunery.registry.registry import Registry

WEIGHTS = "adapter_model.safetensors"
on_kernels = pytest.mark.skipif(load_kernels() is None, reason="only the native kernels read packed bases")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("damage") / "base", "llama")


@pytest.fixture
def adapters(base: Path, tmp_path: Path) -> list[AdapterSource]:
    return [stored(make_adapter(base, tmp_path / str(seed), seed=seed), seed) for seed in (1, 2)]


def stored(source: AdapterSource, seed: int) -> AdapterSource:
    """The source with its digests, as the registry gives them."""
    digests = {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in source.files.items()}
    return msgspec.structs.replace(source, name=f"acme/a{seed}", sha256=digests)


def zero_half(path: Path) -> None:
    """As a crash leaves a file whose length was written and whose pages were not."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))


def failures(engine: Engine) -> list[Failed]:
    return [event for event in engine.events if isinstance(event, Failed)]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["another tenant's weights", "half zeroed", "another scale"])
def test_a_damaged_adapter_is_refused_the_others_are_served_and_repair_brings_it_back(
    base: Path, adapters: list[AdapterSource], tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = adapters
    now = [0.0]
    engine = Engine.on(base, clock=lambda: now[0])
    whole = {name: Path(path).read_bytes() for name, path in bad.files.items()}
    if damage == "half zeroed":
        zero_half(Path(bad.files[WEIGHTS]))
    elif damage == "another scale":
        config = Path(bad.files["adapter_config.json"])
        config.write_bytes(config.read_bytes().replace(b'"lora_alpha": 16', b'"lora_alpha": 61'))
    else:
        Path(bad.files[WEIGHTS]).write_bytes(Path(good.files[WEIGHTS]).read_bytes())
    with caplog.at_level(logging.ERROR, "tunery.engine"):
        for one, source in (("bad", bad), ("good", good)):
            engine.core.handle(request(one, prompt(6, seed=1), source))
        engine.core.run_until_idle()
    assert [(event.id, event.code) for event in failures(engine)] == [("bad", "artifact_damaged")]
    assert "tunery adapters verify acme/a1@1" in failures(engine)[0].message
    assert str(tmp_path) not in failures(engine)[0].message
    assert str(tmp_path) in caplog.text
    assert len(engine.answers()["good"]) == 12
    for name, content in whole.items():
        Path(bad.files[name]).write_bytes(content)
    now[0] += 120.0
    again = engine.run([request("again", prompt(6, seed=1), bad)])
    undamaged = Engine.on(base).run([request("again", prompt(6, seed=1), bad)])
    assert_same(again["again"], undamaged["again"])


def test_an_operator_has_a_repaired_adapter_tried_at_once(base: Path, adapters: list[AdapterSource]) -> None:
    engine = Engine.on(base, clock=lambda: 0.0)
    weights = Path(adapters[0].files[WEIGHTS])
    whole = weights.read_bytes()
    zero_half(weights)
    for repaired in (False, True):
        if repaired:
            weights.write_bytes(whole)
        engine.events.clear()
        engine.core.handle(Load("l", adapters[0]))
        engine.core.run_until_idle()
        assert any(isinstance(event, Loaded) for event in engine.events) == repaired


def test_weights_are_read_once_for_their_digest_and_for_use(
    base: Path, adapters: list[AdapterSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    read = Path.read_bytes

    def noted(path: Path) -> bytes:
        opened.append(path.name)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    Engine.on(base).run([request("r", prompt(6, seed=1), adapters[0])])
    assert opened.count(WEIGHTS) == 1


@on_kernels
@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_a_damaged_packed_base_is_made_again_with_a_warning(
    base: Path, tmp_path: Path, quant: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"quant": quant, "cache_folder": str(tmp_path / "packed")}
    asked = [request("r", prompt(8, seed=3))]
    first = Engine.on(base, **settings).run(asked)["r"]
    (kept,) = (tmp_path / "packed").iterdir()
    whole = kept.read_bytes()
    Engine.on(base, **settings)
    assert caplog.text == ""
    assert kept.stat().st_ino == next((tmp_path / "packed").iterdir()).stat().st_ino
    with kept.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))
    assert_same(Engine.on(base, **settings).run(asked)["r"], first)
    assert "is damaged; packing the base again" in caplog.text
    (again,) = (tmp_path / "packed").iterdir()
    assert again.read_bytes() == whole


@on_kernels
def test_a_packed_base_is_on_the_disk_before_it_has_its_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    Engine.on(base, cache_folder=str(tmp_path / "packed"))
    (kept,) = (tmp_path / "packed").iterdir()
    assert kept.stat().st_ino in synced


@on_kernels
def test_a_base_is_compared_with_its_digest_when_it_is_packed(
    registry: Registry, tiny_base: Base, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_files, "SMALL", 0)
    monkeypatch.setattr(base_files, "_stamp", lambda path, content: base_files._Stamp(content, 1, 1, 1))
    assert resolve_base("tiny", registry=registry, plugins=load_plugins(allow=())) == tiny_base
    settings: dict[str, Any] = {"base_digest": tiny_base.digest, "cache_folder": str(home.packed)}
    zero_half(Path(tiny_base.path) / "model.safetensors")
    assert resolve_base("tiny", registry=registry, plugins=load_plugins(allow=())) == tiny_base
    with pytest.raises(StorageFailed, match=r"damaged \(model\.safetensors\): .*tunery bases add tiny") as caught:
        Engine.on(Path(tiny_base.path), **settings)
    assert caught.value.code == "base_damaged"
    # Even where the file looks as it did, what was found is not forgotten: the base is taken again.
    assert resolve_base("tiny", registry=registry, plugins=load_plugins(allow=())) == tiny_base
    assert base_digest(Path(tiny_base.path)) == tiny_base.digest
    Engine.on(Path(tiny_base.path), **settings)


@on_kernels
def test_verify_names_damaged_bases_and_packed_bases(registry: Registry, tiny_base: Base, home: Home) -> None:
    Engine.on(Path(tiny_base.path), base_digest=tiny_base.digest, cache_folder=str(home.packed))
    assert registry.verify() == []
    (packed,) = home.packed.glob("*.safetensors")
    zero_half(packed)
    zero_half(Path(tiny_base.path) / "model.safetensors")
    assert [(one.version, one.path) for one in registry.verify()] == [
        ("base tiny", "model.safetensors"),
        ("base tiny", packed.name),
    ]
    assert base_digest(Path(tiny_base.path)) != tiny_base.digest


def test_sources_without_digests_are_served_as_they_are(base: Path, tmp_path: Path) -> None:
    source = make_adapter(base, tmp_path / "plain", seed=5)
    assert describe(tmp_path / "plain").sha256 == {}
    assert len(Engine.on(base).run([request("r", prompt(6, seed=1), source)])["r"]) == 12
