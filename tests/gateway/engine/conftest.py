"""A random base and four adapters of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.engine.peft_oracle import make_adapter, make_base
from tunery.gateway.engine.composition import AdapterSource


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterSource]:
    return [make_adapter(base, tmp_path_factory.mktemp(f"a{i}"), seed=i) for i in range(4)]


@pytest.fixture(scope="module")
def spoken_adapters(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterSource]:
    """Two adapters of the tiny base, whose tokenizer constraints need."""
    return [make_adapter(tiny_base_folder, tmp_path_factory.mktemp(f"s{i}"), seed=i, size=0.05) for i in range(2)]
