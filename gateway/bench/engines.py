"""Engines of the suite, and the random adapters that they serve."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tunery.gateway.bench.driver import Driver
from tunery.gateway.bench.workload import random_adapter
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.config import EngineConfig
from tunery.registry.peft.layout import WEIGHTS

__all__ = ["BATCH", "Engines"]

BATCH = 32
FILES = 64
"""Adapters with weights of their own; further ones share their files."""


class Engines:
    """Starts engines with room for all adapters and without a prefix cache; adapters are written
    under `scratch`, once."""

    def __init__(self, config: EngineConfig, scratch: Path) -> None:
        self._config = config
        self._scratch = scratch
        self._adapter_bytes = 0

    @contextmanager
    def start(self, **changes: Any) -> Iterator[Driver]:
        """An engine in this process, with `changes` to its configuration."""
        roomy = {"adapter_budget": 1 << 40, "max_batch": BATCH, "prefix_cache": False}
        with Driver(msgspec.structs.replace(self._config, **(roomy | changes))) as driver:
            yield driver

    def adapters(self, driver: Driver, count: int) -> list[AdapterSource]:
        """`count` adapters with weights of their own."""
        return [self._adapter(driver, number) for number in range(count)]

    def identities(self, driver: Driver, count: int) -> list[AdapterSource]:
        """`count` versions over the files of FILES adapters; each is loaded, kept and evicted on its own."""
        files = self.adapters(driver, FILES)
        return [
            AdapterSource(f"identity-{number}", f"bench/identity-{number}", 1, files[number % FILES].files)
            for number in range(count)
        ]

    def budget(self, count: int) -> int:
        """Bytes of memory for `count` adapters, and for what a first load of one reserves: the size of its file."""
        if not self._adapter_bytes:
            with self.start() as driver:
                (source,) = self.adapters(driver, 1)
                driver.load([source])
                on_disk = Path(source.files[WEIGHTS]).stat().st_size
                self._adapter_bytes = max(driver.core.residency.bytes, on_disk)
        return count * self._adapter_bytes

    def _adapter(self, driver: Driver, number: int) -> AdapterSource:
        folder = self._scratch / f"adapter-{number}"
        if folder.is_dir():
            files = {path.name: str(path) for path in folder.iterdir()}
            return AdapterSource(f"bench-{number}", f"bench/adapter-{number}", 1, files)
        return random_adapter(driver.core.model.shape, folder, rank=16, seed=number)
