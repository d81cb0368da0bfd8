"""A disk that fills up while a queued job trains: the worker lives, nothing is lost, and the job ends well later."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tunery.plugins.executors.worker import Worker
from tunery.plugins.testing.executors import ExecutorHarness, wait_until
from tunery.registry.settings import JobsSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    filler = place / "filler"
    descriptor = os.open(filler, os.O_CREAT | os.O_WRONLY)
    with suppress(OSError):
        while os.write(descriptor, bytes(4096)):
            """Until there is no room."""
    os.close(descriptor)
    return filler


def test_a_job_survives_a_full_disk(disk: Path) -> None:
    harness = ExecutorHarness(disk, "local")
    registry, said = harness.registry, list[str]()
    worker = Worker(registry, harness.executor, JobsSettings(), say=said.append)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        job = harness.submit(steps=200)
        wait_until(lambda: (registry.job(job.id).progress or {}).get("step", 0) >= 2, "no step was reported")
        filler = fill(disk)
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
