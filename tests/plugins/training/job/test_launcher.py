"""Training jobs from files to versions: they learn, they repeat, they resume, and a bad run changes nothing."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from tests.plugins.training.conftest import Train
from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import EventSink, JobEvent, Started, StepCompleted
from tunery.plugins.testing import write_rows
from tunery.plugins.training import resume
from tunery.registry.errors import InvalidData, InvalidInput
from tunery.registry.registry import Registry

METHODS = ("lora", "qlora", "full")


@pytest.mark.parametrize("method", METHODS)
def test_the_held_out_loss_falls_below_the_bases(method: str, train: Train, registry: Registry) -> None:
    version = train(method, epochs=6, alias="production")
    assert version.metrics["eval_loss"] < 0.8 * version.metrics["base_loss"]
    assert (version.number, version.method, version.aliases) == (1, method, ("production",))
    assert registry.resolve("acme/tiny") == version
    assert registry.verify() == []


@pytest.mark.parametrize("method", METHODS)
def test_the_same_inputs_give_the_same_digest_and_another_seed_another(method: str, train: Train) -> None:
    digests = [train(method, epochs=1, seed=seed).digest for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_the_manifest_says_where_it_came_from(train: Train, data: Path, registry: Registry) -> None:
    import hashlib

    version = train("lora", epochs=1)
    manifest = version.manifest
    (file,) = manifest["data"]
    assert file["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert (file["rows"], file["format"], manifest["held_out"]) == (40, "chat", 8)
    assert manifest["parameters"]["r"] == 16
    assert manifest["parameters"]["learning_rate"] == 0.01
    assert manifest["base_digest"] == version.base_digest
    assert len(manifest["template"]) == 64
    assert set(manifest["packages"]) >= {"python", "torch", "peft", "tunery"}
    assert manifest["plugins"] == {"tunery": manifest["packages"]["tunery"]}
    assert hashlib.sha256(manifest["template_text"].encode()).hexdigest() == manifest["template"]
    assert manifest["hardware"]["processor"]
    assert manifest["hardware"]["cores"] >= 1
    job = registry.job(manifest["job"])
    assert (job.state, job.version) == ("succeeded", 1)
    lines = (registry.home.jobs / job.id / "metrics.jsonl").read_text().splitlines()
    assert [(use.version, use.role) for use in registry.uses(file["sha256"])] == [("acme/tiny@1", "train")]
    kept = json.loads((registry.home.jobs / job.id / "manifest.json").read_text())
    assert kept == manifest
    assert kept["started_at"] < kept["finished_at"]
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds[0] == "started"
    assert kinds[-1] == "succeeded"
    assert kinds.count("step") == 8


def test_a_version_continues_from_another(train: Train, tmp_path: Path) -> None:
    first = train("lora", epochs=3)
    more = write_rows(tmp_path / "more.jsonl", 40, start=100)
    second = train("lora", files=(more,), parent="acme/tiny@1", epochs=2)
    assert second.number == 2
    assert second.manifest["parent"] == {"version": "acme/tiny@1", "digest": first.digest}
    assert second.metrics["train_loss"] < first.metrics["base_loss"] / 2


def test_a_full_tune_continues_from_the_exact_weights(train: Train) -> None:
    train("full", epochs=3)
    second = train("full", parent="acme/tiny@1", epochs=1, learning_rate=1e-6)
    third = train("full", epochs=1, learning_rate=1e-6)
    assert second.metrics["eval_loss"] < third.metrics["eval_loss"] - 0.5


class Killed(BaseException):
    """Stands for the process's end."""


def kill_at(step: int) -> EventSink:
    def report(event: JobEvent) -> None:
        if isinstance(event, StepCompleted) and event.step == step:
            raise Killed

    return report


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_gives_the_very_same_version(method: str, train: Train, registry: Registry) -> None:
    settings = (
        {"epochs": 2, "checkpoint_every": 3, "dropout": 0.1}
        if method != "full"
        else {"epochs": 2, "checkpoint_every": 3}
    )
    whole = train(method, **settings)
    with pytest.raises(Killed):
        train(method, on_event=kill_at(8), **settings)
    job = registry.jobs()[0]
    assert job.state == "failed"
    assert len(registry.versions()) == 1
    version = resume(
        job.id, registry=registry, plugins=load_plugins(allow=(), without=("gates",)), on_event=lambda event: None
    )
    assert version.digest == whole.digest
    assert registry.job(job.id).state == "succeeded"
    with pytest.raises(InvalidInput, match="already succeeded"):
        resume(
            job.id, registry=registry, plugins=load_plugins(allow=(), without=("gates",)), on_event=lambda event: None
        )


def test_a_resumed_job_continues_from_its_parent_though_the_name_means_another_version_by_now(
    train: Train, registry: Registry
) -> None:
    first = train("lora", max_steps=2)
    with pytest.raises(Killed):
        train("lora", max_steps=3, checkpoint_every=1, parent="acme/tiny", on_event=kill_at(2))
    job = registry.jobs()[0]
    second = train("lora", max_steps=3, checkpoint_every=1, parent="acme/tiny@1")
    assert registry.resolve("acme/tiny") == second
    plugins = load_plugins(allow=(), without=("gates",))
    third = resume(job.id, registry=registry, plugins=plugins, on_event=lambda event: None)
    assert third.manifest["parent"]["digest"] == first.digest
    assert third.digest == second.digest


def test_resuming_with_other_data_is_refused(train: Train, registry: Registry, data: Path) -> None:
    with pytest.raises(Killed):
        train("lora", epochs=2, checkpoint_every=2, on_event=kill_at(5))
    write_rows(data, 44)
    with pytest.raises(InvalidInput) as caught:
        resume(
            registry.jobs()[0].id,
            registry=registry,
            plugins=load_plugins(allow=(), without=("gates",)),
            on_event=lambda event: None,
        )
    assert caught.value.code == "resume_mismatch"


def test_micro_batches_change_nothing_but_rounding(train: Train, events: list[JobEvent]) -> None:
    train("lora", epochs=1, micro_batch_size=4)
    whole = [event.loss for event in events if isinstance(event, StepCompleted)]
    events.clear()
    train("lora", epochs=1, micro_batch_size=1)
    pieces = [event.loss for event in events if isinstance(event, StepCompleted)]
    assert pieces == pytest.approx(whole, rel=1e-4)


def test_equal_rows_are_never_on_both_sides(train: Train, data: Path, events: list[JobEvent]) -> None:
    data.write_text(data.read_text() * 3)
    train("lora", epochs=0.1, allow=("duplicate",))
    started = events[0]
    assert isinstance(started, Started)
    assert (started.rows, started.held_out) == (96, 24)


def test_a_loss_that_is_no_number_stops_at_once_and_names_the_rows(train: Train, registry: Registry) -> None:
    with pytest.raises(ArithmeticError, match=r"step \d+: the loss is .*rows are rows\.jsonl:\d+, ") as caught:
        train("full", learning_rate=1e30, epochs=20, max_grad_norm=1e30)
    assert caught.value.code == "loss_not_finite"  # type: ignore[attr-defined]
    assert registry.versions() == []
    assert registry.jobs()[0].state == "failed"


def test_every_bad_line_of_every_file_is_reported_before_anything_is_trained(
    train: Train, registry: Registry, data: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jsonl"
    good = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    only_user = json.dumps({"messages": [{"role": "user", "content": "a"}]})
    broken.write_text("\n".join((good, "{not json", good, only_user, '["list"]', good)))
    validation = tmp_path / "val.jsonl"
    validation.write_text('{"messages": 3}\n')
    with pytest.raises(InvalidData) as caught:
        train("lora", files=(data, broken), validation=validation)
    message = caught.value.args[0]
    for where in ("broken.jsonl:2:", "broken.jsonl:4:", "broken.jsonl:5:", "val.jsonl:1:"):
        assert where in message
    assert "broken.jsonl:1:" not in message
    assert registry.jobs() == []
    assert registry.versions() == []


def test_rows_with_nothing_left_to_train_are_named(train: Train, data: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.jsonl"
    messages = [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "yes"}]
    long.write_text(json.dumps({"messages": messages}))
    with pytest.raises(InvalidData, match=r"long\.jsonl:1: .* nothing to train on within max_length=64"):
        train("lora", files=(data, long), max_length=64)


def test_a_full_disk_at_the_end_leaves_the_registry_as_it_was(
    train: Train, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from tunery.registry.errors import StorageFailed

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageFailed, match="disk is full"):
        train("lora", epochs=1)
    monkeypatch.undo()
    assert registry.versions() == []
    assert registry.jobs()[0].state == "failed"
    assert math.isfinite(train("lora", epochs=1).metrics["eval_loss"])
