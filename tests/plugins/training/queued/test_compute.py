"""What a job computes is recorded as usage of its tenant and key, while it runs and at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.registry.artifacts import make_base
from tunery.plugins.testing import write_rows
from tunery.plugins.training.queued import compute
from tunery.plugins.training.queued.heartbeat import heartbeat
from tunery.registry.jobs.queue import Claim
from tunery.registry.records import JobRequest
from tunery.registry.registry import Registry
from tunery.registry.usage.records import TRAINING, UsageQuery


def test_seconds_are_recorded_now_and_then_and_at_the_end(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_base(make_base(tmp_path / "base"))
    file = registry.data_files.add(write_rows(tmp_path / "rows.jsonl", 1), tenant="acme", purpose="fine-tune", name="r")
    request = JobRequest(adapter="acme/bot", trainer="lora", base="b" * 64, data=(file.id,), actor="key:k1")
    registry.queue.submit(request, tenant="acme")
    job = registry.queue.claim("here")
    assert job is not None
    clock = [100.0]
    monkeypatch.setattr("tunery.plugins.training.queued.compute.time.monotonic", lambda: clock[0])
    meter = compute.ComputeMeter(registry, Claim(job.id, job.fence))
    clock[0] += 10
    meter.tick()
    assert registry.usage.sums(UsageQuery(start=0, end=2**40)) == []
    clock[0] += 10
    meter.tick()
    clock[0] += 2.5
    meter.record()
    (used,) = registry.usage.sums(
        UsageQuery(start=0, end=2**40, group=("tenant", "key", "model", "endpoint"), endpoints=(TRAINING,))
    )
    assert (used.tenant, used.key, used.model, used.milliseconds) == ("acme", "k1", "acme/bot", 22_500)
    assert registry.usage.compute_seconds("acme", start=0, key="k1") == 22.5


def test_a_job_whose_process_ends_soon_is_recorded(registry: Registry, tmp_path: Path) -> None:
    file = registry.data_files.add(write_rows(tmp_path / "rows.jsonl", 1), tenant="acme", purpose="fine-tune", name="r")
    request = JobRequest(adapter="acme/bot", trainer="lora", base="b" * 64, data=(file.id,))
    registry.queue.submit(request, tenant="acme")
    job = registry.queue.claim("here")
    assert job is not None
    with heartbeat(registry, Claim(job.id, job.fence), on_wanted=print, on_lost=print):
        """The job."""
    (used,) = registry.usage.sums(UsageQuery(start=0, end=2**40))
    assert used.requests == 1
