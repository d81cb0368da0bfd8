"""Checkpoints as models: the last few of each job, kept while their claim counts, and their files with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.registry.artifacts import make_adapter
from tunery.registry import Base, NewVersion
from tunery.registry.errors import ArtifactRefused, Conflict, NotFound
from tunery.registry.jobs.queue import Claim
from tunery.registry.records import Checkpoint, JobRequest
from tunery.registry.registry import Registry

NAME = "ft:tiny:acme:bot:1"


@pytest.fixture
def claim(registry: Registry, tmp_path: Path) -> Claim:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    file = registry.data_files.add(tmp_path / "rows.jsonl", tenant="acme", purpose="fine-tune", name="rows.jsonl")
    request = JobRequest(adapter="acme/bot", trainer="lora", base="b" * 64, data=(file.id,), model_name=NAME)
    registry.queue.submit(request, tenant="acme")
    job = registry.queue.claim("worker")
    assert job is not None
    return Claim(job.id, job.fence)


def keep(registry: Registry, base: Base, folder: Path, claim: Claim, step: int, *, seed: int = 0) -> Checkpoint:
    new = NewVersion(
        adapter="acme/bot",
        folder=make_adapter(folder / f"{step}-{seed}", seed=100 * step + seed),
        base=base,
        method="lora",
        manifest={},
        metrics={"train_loss": 1.0, "eval_loss": float("nan")},
        actor="test",
    )
    return registry.checkpoints.keep(new, claim=claim, step=step, name=f"{NAME}:ckpt-step-{step}")


def test_the_last_three_of_a_job_are_kept_newest_first(
    registry: Registry, base: Base, tmp_path: Path, claim: Claim
) -> None:
    kept = [keep(registry, base, tmp_path, claim, step) for step in (2, 4, 10, 12)]
    assert registry.checkpoints.of_job(claim.job) == kept[:0:-1]
    assert registry.checkpoints.all() == kept[1:]
    assert registry.checkpoints.get(f"{NAME}:ckpt-step-10") == kept[2]
    assert kept[2].metrics == {"train_loss": 1.0}
    with pytest.raises(NotFound, match="made room"):
        registry.checkpoints.get(f"{NAME}:ckpt-step-2")
    said = [event for event in registry.queue.events_after(claim.job, 0) if event.kind == "checkpoint_kept"]
    assert [event.data["step"] for event in said] == [2, 4, 10, 12]
    assert said[0].message == f"Checkpoint created at step 2 with Snapshot ID: {NAME}:ckpt-step-2"
    # They are no versions: no number is given out, and the adapter does not exist yet.
    assert registry.versions() == []
    assert registry.adapters() == []


def test_a_step_that_is_done_again_replaces_its_checkpoint(
    registry: Registry, base: Base, tmp_path: Path, claim: Claim
) -> None:
    keep(registry, base, tmp_path, claim, 4)
    again = keep(registry, base, tmp_path, claim, 4, seed=1)
    assert registry.checkpoints.of_job(claim.job) == [again]


def test_a_worker_that_lost_its_claim_keeps_nothing(
    registry: Registry, base: Base, tmp_path: Path, claim: Claim
) -> None:
    with pytest.raises(Conflict) as refused:
        keep(registry, base, tmp_path, Claim(claim.job, claim.fence - 1), 4)
    assert refused.value.code == "claim_lost"
    assert registry.checkpoints.all() == []


def test_files_that_cannot_be_served_are_no_checkpoint(
    registry: Registry, base: Base, tmp_path: Path, claim: Claim
) -> None:
    folder = make_adapter(tmp_path / "odd", changes={"base_model.model.model.layers.0.q_proj.lora_A.weight": None})
    new = NewVersion(
        adapter="acme/bot", folder=folder, base=base, method="lora", manifest={}, metrics={}, actor="test"
    )  # fmt: skip
    with pytest.raises(ArtifactRefused):
        registry.checkpoints.keep(new, claim=claim, step=1, name=f"{NAME}:ckpt-step-1")
    assert registry.checkpoints.all() == []


def test_a_collection_keeps_their_files_until_they_are_removed(
    registry: Registry, base: Base, tmp_path: Path, claim: Claim
) -> None:
    kept = keep(registry, base, tmp_path, claim, 4)
    paths = registry.files(kept.version)
    registry.collect(older_than=-1)
    assert all(path.exists() for path in paths.values())
    registry.checkpoints.remove(kept.name)
    with pytest.raises(NotFound):
        registry.checkpoints.remove(kept.name)
    registry.collect(older_than=-1)
    assert not any(path.exists() for path in paths.values())
