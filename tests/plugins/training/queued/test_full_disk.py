"""A disk that fills up while a queued job trains: the worker lives, nothing is lost, and the job ends well later."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small_disk import fill_disk, mounted_disk
from tunery.plugins.executors.worker import Worker
from tunery.plugins.testing.executors import ExecutorHarness, wait_until
from tunery.registry.configuration.settings import JobsSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB of its own."""
    with mounted_disk(tmp_path / "disk", "64m") as place:
        yield place


def test_a_job_survives_a_full_disk(disk: Path, forked_jobs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    harness = ExecutorHarness(disk, "local")
    registry, said = harness.registry, list[str]()
    worker = Worker(registry, harness.executor, JobsSettings(), say=said.append)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        job = harness.submit(steps=200)
        wait_until(lambda: (registry.job(job.id).progress or {}).get("step", 0) >= 2, "no step was reported")
        filler = fill_disk(disk)
        process = next(iter(worker._running.values()))
        wait_until(lambda: process.poll() is not None, "the process did not notice")
        assert registry.job(job.id).state != "succeeded"
        assert registry.versions() == []
        filler.unlink()
        wait_until(lambda: registry.job(job.id).state in ("failed", "succeeded"), "the job did not end")
        # It may have been too full to record that it was.
        if (failed := registry.job(job.id)).state == "failed":
            assert failed.code == "disk_full"
            registry.queue.resume(job.id)
            wait_until(lambda: registry.job(job.id).state != "queued", "it was not taken up")
            wait_until(lambda: registry.job(job.id).state in ("failed", "succeeded"), "the job did not end")
        assert registry.job(job.id).state == "succeeded"
    finally:
        worker.stop()
        thread.join()
    assert registry.verify() == []
    assert len(registry.versions()) == 1
    events = registry.queue.events_after(job.id, 0, limit=10_000)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [event.kind for event in events].count("succeeded") == 1
    registry.close()
