"""From the name a client writes to the version that answers; never to the base by mistake."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.registry.artifacts import make_adapter, make_base
from tunery.gateway.resolver import Resolver
from tunery.registry import Base, Version
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.home import Home
from tunery.registry.registry import Registry


@pytest.fixture
def base(registry: Registry, tmp_path: Path) -> Base:
    return registry.add_base(make_base(tmp_path / "base"))


@pytest.fixture
def resolver(registry: Registry, base: Base) -> Resolver:
    return Resolver(registry, base)


def publish(
    registry: Registry, base: Base, folder: Path, adapter: str, seed: int = 0, alias: str | None = None
) -> Version:
    made = make_adapter(folder / f"{adapter.replace('/', '-')}-{seed}", seed=seed)
    return registry.publish(adapter, made, base=base, method="lora", manifest={}, metrics={}, actor="test", alias=alias)


def test_every_way_to_write_a_version(registry: Registry, base: Base, resolver: Resolver, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        publish(registry, base, tmp_path, "acme/support", seed)

    def number(model: str) -> int:
        version = resolver.resolve(model).version
        assert version is not None
        return version.number

    assert number("acme/support") == 3, "the newest, while there is no production alias"
    registry.move_alias("acme/support", "production", 1, actor="test")
    registry.move_alias("acme/support", "canary", 2, actor="test")
    assert [number(f"acme/support{pin}") for pin in ("", "@3", "@canary", "@production")] == [1, 3, 2, 1]


def test_the_base_by_its_name_and_an_adapter_beside_it(
    registry: Registry, base: Base, resolver: Resolver, tmp_path: Path
) -> None:
    version = publish(registry, base, tmp_path, "acme/support")
    assert resolver.resolve("tiny").version is None
    chosen = resolver.resolve("tiny", adapter="acme/support")
    assert chosen.version is not None
    assert chosen.version.digest == version.digest
    assert resolver.resolve("acme/support", adapter="acme/support").version == chosen.version
    with pytest.raises(InvalidInput, match="disagree"):
        resolver.resolve("acme/support", adapter="acme/other")
    with pytest.raises(NotFound) as caught:
        resolver.resolve("tiny", adapter="acme/unknown")
    assert caught.value.param == "adapter"


@pytest.mark.parametrize(
    "name", ["acme/suport", "acme/support@9", "acme/support@canary", "Tiny", "tiny ", "", "@", "a@b@c"]
)
def test_what_does_not_exist_is_not_found(
    registry: Registry, base: Base, resolver: Resolver, tmp_path: Path, name: str
) -> None:
    publish(registry, base, tmp_path, "acme/support")
    with pytest.raises(NotFound) as caught:
        resolver.resolve(name)
    assert caught.value.code == "model_not_found"
    if name == "acme/suport":
        assert "acme/support" in caught.value.message


def test_an_adapter_wins_over_the_base_whose_hub_id_it_has(registry: Registry, base: Base, tmp_path: Path) -> None:
    hub = msgspec.structs.replace(base, source="org/model")
    resolver = Resolver(registry, hub)
    assert resolver.resolve("org/model").version is None
    publish(registry, base, tmp_path, "org/model")
    assert resolver.resolve("org/model").version is not None


def test_what_was_resolved_is_kept_until_somebody_commits(
    registry: Registry, base: Base, resolver: Resolver, tmp_path: Path, home: Home
) -> None:
    publish(registry, base, tmp_path, "acme/support", 1)
    first = resolver.resolve("acme/support")
    assert resolver.resolve("acme/support") is first
    with Registry.open(home) as other:
        publish(other, base, tmp_path, "acme/support", 2)
    second = resolver.resolve("acme/support")
    assert second.version is not None
    assert (second.version.number, second.source and second.source.number) == (2, 2)
    assert first.version is not None
    assert first.version.number == 1, "who was accepted before keeps what it got"


def test_the_source_names_files_that_are_there(
    registry: Registry, base: Base, resolver: Resolver, tmp_path: Path
) -> None:
    version = publish(registry, base, tmp_path, "acme/support")
    source = resolver.resolve("acme/support").source
    assert source is not None
    assert (source.digest, source.name) == (version.digest, "acme/support")
    assert all(Path(path).is_file() and Path(path).is_absolute() for path in source.files.values())
