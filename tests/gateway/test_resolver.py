"""Resolving the name that a client writes to a version; never to the base by mistake."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.registry.artifacts import make_adapter, make_base
from tunery.gateway.resolver import Resolver
from tunery.registry import Base, NewVersion, Version
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
    return registry.publish(
        NewVersion(
            adapter=adapter, folder=made, base=base, method="lora", manifest={}, metrics={}, actor="test", alias=alias
        )
    )


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
    "name",
    ["acme/suport", "acme/support@9", "acme/support@canary", "Tiny", "tiny ", "", "@", "a@b@c", "llama3:8b", "a+b"],
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
    assert (second.version.number, second.composition[0].source.number) == (2, 2)
    assert first.version is not None
    assert first.version.number == 1, "who was accepted before keeps what it got"


def test_the_source_names_files_that_are_there(
    registry: Registry, base: Base, resolver: Resolver, tmp_path: Path
) -> None:
    version = publish(registry, base, tmp_path, "acme/support")
    source = resolver.resolve("acme/support").composition[0].source
    assert (source.digest, source.name) == (version.digest, "acme/support")
    assert all(Path(path).is_file() and Path(path).is_absolute() for path in source.files.values())


def test_a_composition_is_its_versions_with_their_weights(
    registry: Registry, base: Base, resolver: Resolver, tmp_path: Path
) -> None:
    tone, facts = (
        publish(registry, base, tmp_path, name, seed) for seed, name in enumerate(("acme/tone", "globex/facts"))
    )
    target = resolver.resolve("acme/tone:0.5+globex/facts@1")
    assert target.versions == (tone, facts)
    assert [(part.source.digest, part.weight) for part in target.composition] == [
        (tone.digest, 0.5),
        (facts.digest, 1.0),
    ]
    assert (target.version, target.tenant, target.label) == (None, "acme", "mix")
    assert target.title == "acme/tone@1:0.5+globex/facts@1"
    assert target.headers() == {
        "x-tunery-base": f"tiny@{base.digest[:12]}",
        "x-tunery-adapter": "acme/tone,globex/facts",
        "x-tunery-version": "1,1",
        "x-tunery-digest": f"{tone.digest},{facts.digest}",
        "x-tunery-weight": "0.5,1",
    }
    assert resolver.resolve("tiny", adapter="acme/tone:0.5+globex/facts@1") == target


def test_who_answers_has_one_identity_however_it_is_written(
    registry: Registry, base: Base, resolver: Resolver, tmp_path: Path
) -> None:
    version = publish(registry, base, tmp_path, "acme/tone")
    publish(registry, base, tmp_path, "acme/facts", 1)
    plain = resolver.resolve("acme/tone")
    assert resolver.resolve("acme/tone@1:1") == plain
    assert version.digest[:10] in plain.fingerprint
    assert "x-tunery-weight" not in plain.headers()
    written = ("acme/tone:0.5", "acme/tone+acme/facts", "acme/facts+acme/tone", "acme/tone:2+acme/facts", "tiny")
    assert len({resolver.resolve(name).fingerprint for name in ("acme/tone", *written)}) == 6


@pytest.mark.parametrize(
    ("model", "code", "message"),
    [
        ("acme/tone+acme/none", "model_not_found", "acme/none"),
        ("acme/tone+tiny", "model_not_found", "'tiny' is not an adapter name"),
        ("acme/tone+", "model_not_found", "''"),
        ("acme/tone:x", "invalid_composition", "'x' is not a weight for acme/tone"),
        ("acme/tone+acme/tone@1", "invalid_composition", "one version twice"),
    ],
)
def test_a_composition_that_cannot_be_names_the_part_at_fault(
    registry: Registry, base: Base, resolver: Resolver, tmp_path: Path, model: str, code: str, message: str
) -> None:
    publish(registry, base, tmp_path, "acme/tone")
    with pytest.raises((NotFound, InvalidInput), match=message) as caught:
        resolver.resolve(model)
    assert (caught.value.code, caught.value.param) == (code, "model")


def test_a_composition_is_not_one_version(registry: Registry, base: Base, resolver: Resolver, tmp_path: Path) -> None:
    publish(registry, base, tmp_path, "acme/tone")
    for name in ("acme/tone:0.5", "acme/tone+acme/facts"):
        with pytest.raises(InvalidInput, match="only inference endpoints take"):
            resolver.resolve_one(name)
    assert resolver.resolve_one("acme/tone").version is not None
    assert resolver.resolve_one("tiny").composition == ()
