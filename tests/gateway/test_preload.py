"""Adapters that are preloaded at the start, and again into every new engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from tests.gateway.api.test_metrics import stats
from tests.registry.artifacts import make_adapter, make_base
from tunery.gateway.engine.fake import FakeEngine
from tunery.gateway.preload import Preloader
from tunery.gateway.resolver import Resolver
from tunery.registry import NewVersion, Version
from tunery.registry.errors import ArtifactRefused
from tunery.registry.registry import Registry


class RestartedEngine(FakeEngine):
    """One that can become another."""

    def restart(self) -> None:
        assert self._ready is not None
        self._ready = msgspec.structs.replace(self._ready)


@pytest.fixture
def engine() -> RestartedEngine:
    return RestartedEngine()


@pytest.fixture
def versions(registry: Registry, tmp_path: Path) -> dict[str, Version]:
    base = registry.add_base(make_base(tmp_path / "base"))
    return {
        name: registry.publish(
            NewVersion(
                adapter=name,
                folder=make_adapter(tmp_path / name, seed=seed),
                base=base,
                method="lora",
                manifest={},
                metrics={},
                actor="test",
                alias=None,
            )
        )
        for seed, name in enumerate(("acme/tone", "acme/facts"))
    }


def preloading(registry: Registry, engine: FakeEngine, *references: str) -> Preloader:
    return Preloader(references, engine=engine, resolver=Resolver(registry, registry.base("tiny")))


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_each_new_engine_gets_them_once_and_pinned(
    registry: Registry, engine: RestartedEngine, versions: dict[str, Version]
) -> None:
    made = preloading(registry, engine, "acme/tone", "acme/facts@1")
    digests = [versions[name].digest for name in ("acme/tone", "acme/facts")]
    for _ in range(3):
        made.on_stats(stats())
        await settled()
    assert engine.loaded == engine.pinned == digests
    engine.restart()
    made.on_stats(stats())
    await settled()
    assert engine.pinned == 2 * digests
    await made.stop()


async def test_what_cannot_be_loaded_is_logged_and_the_others_are(
    registry: Registry, engine: RestartedEngine, versions: dict[str, Version], caplog: pytest.LogCaptureFixture
) -> None:
    made = preloading(registry, engine, "acme/none", "tiny", "acme/tone+acme/facts", "acme/facts")
    made.on_stats(stats())
    await settled()
    assert engine.pinned == [versions["acme/facts"].digest]
    for message in ("acme/none is not preloaded", "tiny is not preloaded", "acme/tone+acme/facts is not preloaded"):
        assert message in caplog.text
    engine.restart()
    engine.failure = ArtifactRefused("it has NaN")
    made.on_stats(stats())
    await settled()
    assert "acme/facts is not preloaded: it has NaN" in caplog.text
    await made.stop()


async def test_an_engine_that_is_not_ready_gets_nothing(
    registry: Registry, engine: RestartedEngine, versions: object
) -> None:
    made = preloading(registry, engine, "acme/tone")
    engine.die()
    made.on_stats(stats())
    await settled()
    assert engine.loaded == []
    await made.stop()
