"""A version trained again from its manifest has the same digest, or a list of what differs; nothing is published."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.plugins.training.conftest import Train
from tunery.plugins.discovery import load_plugins
from tunery.plugins.testing import CHATML, write_rows
from tunery.plugins.training import Reproduction, reproduce
from tunery.plugins.training.job.manifest import differences
from tunery.registry import Base, Version
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.registry import Registry


def again(version: Version, registry: Registry, *data: Path) -> Reproduction:
    plugins = load_plugins(allow=(), without=("gates",))
    return reproduce(version, data=data, registry=registry, plugins=plugins, on_event=lambda event: None)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_the_same_inputs_give_the_same_digest_again(method: str, train: Train, registry: Registry) -> None:
    version = train(method, epochs=1)
    result = again(version, registry)
    assert (result.same, result.again, result.differences) == (True, version.digest, ())
    assert len(registry.versions()) == 1
    assert registry.jobs()[0].version is None


def test_files_are_found_by_content_wherever_they_are(
    train: Train, registry: Registry, data: Path, tmp_path: Path
) -> None:
    validation = write_rows(tmp_path / "val.jsonl", 6, start=50)
    version = train("lora", epochs=1, validation=validation)
    moved = [shutil.move(path, tmp_path / f"moved-{path.name}") for path in (data, validation)]
    with pytest.raises(NotFound, match=r"rows\.jsonl .*val\.jsonl .*--data"):
        again(version, registry)
    other = write_rows(tmp_path / "other.jsonl", 7, start=90)
    jobs = len(registry.jobs())
    with pytest.raises(InvalidInput, match=r"was not trained on .*other\.jsonl"):
        again(version, registry, *map(Path, moved), other)
    assert len(registry.jobs()) == jobs
    assert again(version, registry, *map(Path, reversed(moved))).same


def test_what_is_not_the_same_is_named(train: Train, registry: Registry) -> None:
    version = train("lora", epochs=1)
    other = version.manifest | {"parameters": version.manifest["parameters"] | {"seed": 9}, "packages": {"torch": "1"}}
    result = again(msgspec.structs.replace(version, manifest=other), registry)
    assert not result.same
    assert "file adapter_model.safetensors" in result.differences
    assert any(line.startswith('packages.torch: "1" → ') for line in result.differences)


def test_a_template_that_reads_the_time_gets_that_of_the_first_run(
    train: Train, registry: Registry, base_with: Callable[..., Base]
) -> None:
    base = base_with("{{ strftime_now('%H:%M:%S') }}\n" + CHATML)
    version = train("lora", max_steps=2, base=base)
    assert version.manifest["template_text"].endswith(CHATML)
    time.sleep(1.1)
    result = again(version, registry)
    assert result.differences == ()
    assert result.same


def test_differences_name_the_place_and_both_values() -> None:
    before = {"parameters": {"seed": 1, "r": 16}, "data": [{"sha256": "a"}], "parent": None}
    now = {"parameters": {"seed": 2, "r": 16}, "data": [{"sha256": "b"}], "parent": {"version": "acme/x@1"}}
    assert differences(before, now, names=("parameters", "data", "parent")) == [
        "parameters.seed: 1 → 2",
        'data[0].sha256: "a" → "b"',
        'parent: null → {"version":"acme/x@1"}',
    ]
    assert differences(before, before) == []
