"""Versions made from versions: what is continued, what is served of it, what the manifest says, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.plugins.training.conftest import Train
from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import JobEvent, StepCompleted
from tunery.plugins.parameters import read_parameters
from tunery.plugins.testing import write_pairs, write_rows
from tunery.plugins.training import TrainRequest
from tunery.plugins.training import train as run
from tunery.registry import Base, Version
from tunery.registry.errors import InvalidInput
from tunery.registry.registry import Registry

TINY_STEP = {"max_steps": 1, "learning_rate": 1e-7, "warmup": 0.0}
"""A run that changes next to nothing, so that what it began with is what it ends with."""


@pytest.fixture
def parent(train: Train) -> Version:
    return train("lora", adapter="acme/parent", epochs=6)


def weights(registry: Registry, version: Version, folder: Path) -> dict[str, torch.Tensor]:
    registry.export(version, folder)
    return dict(load_file(folder / "adapter_model.safetensors"))


def first_step(events: list[JobEvent]) -> float:
    return float(next(event.loss for event in events if isinstance(event, StepCompleted)))


def test_a_pair_is_continued_and_not_stacked(
    train: Train, parent: Version, registry: Registry, tmp_path: Path, events: list[JobEvent]
) -> None:
    events.clear()
    child = train("lora", adapter="acme/child", parent="acme/parent@1", **TINY_STEP)
    assert child.manifest["parent"] == {"version": "acme/parent@1", "digest": parent.digest}
    before = weights(registry, parent, tmp_path / "before")
    after = weights(registry, child, tmp_path / "after")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert child.digest != parent.digest
    assert first_step(events) < 0.5 * parent.metrics["base_loss"]


def test_a_pair_is_continued_on_the_four_bit_base(train: Train, parent: Version, events: list[JobEvent]) -> None:
    events.clear()
    child = train("qlora", adapter="acme/child", parent="acme/parent@1", epochs=1, learning_rate=1e-3)
    assert first_step(events) < 0.5 * parent.metrics["base_loss"]
    assert child.metrics["eval_loss"] < 0.5 * child.metrics["base_loss"]
    assert child.manifest["parent"]["version"] == "acme/parent@1"


def test_preferences_after_answers_begin_where_the_answers_ended(
    train: Train, parent: Version, tmp_path: Path, events: list[JobEvent], registry: Registry
) -> None:
    events.clear()
    pairs = write_pairs(tmp_path / "pairs.jsonl", 40)
    child = train("dpo", adapter="acme/child", parent="acme/parent@1", files=(pairs,), epochs=2, learning_rate=1e-3)
    assert first_step(events) == pytest.approx(math.log(2), abs=1e-5)
    assert child.metrics["base_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert child.metrics["reward_margin"] > 0
    assert child.metrics["base_ranking_accuracy"] > 0.9  # the parent already answers as it should
    assert child.manifest["parent"]["digest"] == parent.digest
    before, after = weights(registry, parent, tmp_path / "before"), weights(registry, child, tmp_path / "after")
    assert before.keys() == after.keys()


def test_every_weight_goes_on_from_a_pair(train: Train, parent: Version, events: list[JobEvent]) -> None:
    events.clear()
    child = train("full", adapter="acme/child", parent="acme/parent@1", max_steps=2, learning_rate=1e-6)
    assert first_step(events) < 0.5 * parent.metrics["base_loss"]
    assert child.metrics["exact_loss"] < 0.5 * parent.metrics["base_loss"]


def test_dropout_is_the_runs_and_not_the_parents(
    train: Train, parent: Version, registry: Registry, tmp_path: Path
) -> None:
    child = train("lora", adapter="acme/child", parent="acme/parent@1", dropout=0.3, **TINY_STEP)
    registry.export(child, tmp_path / "child")
    assert json.loads((tmp_path / "child" / "adapter_config.json").read_text())["lora_dropout"] == 0.3


@pytest.mark.parametrize("setting", [{"r": 4}, {"alpha": 8.0}, {"rslora": True}, {"target_modules": ["q_proj"]}])
def test_a_shape_that_the_parent_does_not_have_is_refused(
    setting: dict[str, Any], train: Train, parent: Version, registry: Registry
) -> None:
    (name,) = setting
    with pytest.raises(InvalidInput, match=f"leave {name} out"):
        train("lora", adapter="acme/child", parent="acme/parent@1", **setting, **TINY_STEP)
    assert len(registry.versions()) == 1
    assert len(registry.jobs()) == 1


def test_the_manifest_says_the_shape_that_is_continued_and_the_default_may_not_be_asked_for(
    train: Train, registry: Registry
) -> None:
    train("lora", adapter="acme/parent", r=4, alpha=8.0, target_modules=["q_proj"], **TINY_STEP)
    child = train("lora", adapter="acme/child", parent="acme/parent@1", **TINY_STEP)
    parameters = child.manifest["parameters"]
    assert (parameters["r"], parameters["alpha"], parameters["target_modules"]) == (4, 8.0, ["q_proj"])
    train("lora", adapter="acme/child", parent="acme/parent@1", r=4, target_modules=["q_proj"], **TINY_STEP)
    with pytest.raises(InvalidInput, match="has r=4, r=16 was asked for; leave r out"):
        train("lora", adapter="acme/child", parent="acme/parent@1", r=16, **TINY_STEP)


def test_no_pair_goes_on_from_every_weight(train: Train, registry: Registry) -> None:
    train("full", adapter="acme/parent", epochs=6, learning_rate=0.003)
    with pytest.raises(InvalidInput, match="--method full") as caught:
        train("lora", adapter="acme/child", parent="acme/parent@1", **TINY_STEP)
    assert caught.value.code == "invalid_parent"
    assert len(registry.versions()) == 1


def test_a_parent_of_another_base_is_refused(
    parent: Version, registry: Registry, tiny_base_folder: Path, tmp_path: Path
) -> None:
    from tunery.plugins.bases.resolve import resolve_base

    plugins = load_plugins(allow=())
    folder = shutil.copytree(tiny_base_folder, tmp_path / "other")
    tensors = load_file(folder / "model.safetensors")
    from safetensors.torch import save_file

    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    other: Base = resolve_base(str(folder), registry=registry, plugins=plugins, name="other")
    request = TrainRequest(
        adapter="acme/child", trainer="lora", base=other.digest, data=(str(write_rows(tmp_path / "r.jsonl", 8)),),
        parent="acme/parent@1",
    )  # fmt: skip
    with pytest.raises(InvalidInput, match="continue on the same base") as caught:
        run(request, read_parameters(plugins.trainer("lora").parameters, {}), registry=registry, plugins=plugins,
            on_event=lambda event: None)  # fmt: skip
    assert caught.value.code == "wrong_base"
    assert [job.adapter for job in registry.jobs()] == ["acme/parent"]
