"""The conformance suite for executors: what every way to run queued jobs must do, as a test class to subclass."""

# A test suite: it asserts.
# ruff: noqa: S101

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from tunery.plugins.descriptors import load_entrypoint
from tunery.plugins.discovery import load_plugins
from tunery.plugins.executors.executor import Assignment, Executor, RunningJob
from tunery.plugins.testing.rows import write_rows
from tunery.plugins.testing.tiny_base import make_tiny_base
from tunery.registry.home import Home
from tunery.registry.jobs.queue import Claim
from tunery.registry.records import Job, JobRequest
from tunery.registry.registry import Registry

__all__ = ["ExecutorConformance", "ExecutorHarness"]

PATIENCE = 600.0
"""Seconds to wait for what must happen."""
ENDLESS = 100_000
"""Steps of a job that does not end by itself."""


class ExecutorHarness:
    """An executor, and a registry in `folder` with the tiny base and rows that its jobs train on. The test is the
    worker."""

    def __init__(self, folder: Path, executor: str) -> None:
        from tunery.plugins.bases.resolve import resolve_base

        plugins = load_plugins()
        self.registry = Registry.open(Home(folder / "home"))
        (folder / "base").mkdir(parents=True)
        base = resolve_base(
            str(make_tiny_base(folder / "base")), registry=self.registry, plugins=plugins, name="tiny"
        )  # fmt: skip
        rows = write_rows(folder / "rows.jsonl", 40)
        file = self.registry.data_files.add(rows, tenant="acme", purpose="fine-tune", name="rows.jsonl")
        self._request = JobRequest(
            adapter="acme/bot", trainer="lora", base=base.digest, data=(file.id,), force=True
        )  # fmt: skip
        self.executor: Executor = load_entrypoint(plugins.executor(executor).entrypoint)()

    def start(self, *, steps: int = 6, **parameters: Any) -> tuple[Claim, RunningJob]:
        """Submit a job, claim it, and have the executor run it."""
        self.submit(steps=steps, **parameters)
        return self.run_next()

    def submit(self, *, steps: int = 6, **parameters: Any) -> Job:
        """Submit a job."""
        given = {"max_steps": steps, "checkpoint_every": 1, "precision": "float32", "seed": 1, **parameters}
        request = msgspec.structs.replace(self._request, parameters=given)
        return self.registry.queue.submit(request, tenant="acme")

    def run_next(self) -> tuple[Claim, RunningJob]:
        """Claim the next job, and have the executor run it."""
        job = self.registry.queue.claim("conformance", lease=2 * PATIENCE)
        assert job is not None, "there is no job to claim"
        claim = Claim(job.id, job.fence)
        return claim, self.executor.start(Assignment(job, claim, self.registry.home.root))

    def job(self, claim: Claim) -> Job:
        """The job of a claim, as it is now."""
        return self.registry.job(claim.job)

    def step(self, claim: Claim) -> int:
        """The last step that a job has reported."""
        return int((self.job(claim).progress or {}).get("step") or 0)

    def log(self, claim: Claim) -> str:
        """What the processes of a job printed, where the executor keeps it as `local` does."""
        path = self.registry.home.jobs / claim.job / "process.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    @staticmethod
    def ended(run: RunningJob) -> int:
        """Wait until a process has ended; returns its exit code."""
        wait_until(lambda: run.poll() is not None, "the process did not end")
        code = run.poll()
        assert code is not None
        return code


def wait_until(true: Callable[[], object], otherwise: str) -> None:
    """Wait until something is true; fail after a long time."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


class ExecutorConformance:
    """What every executor must do. Set `executor` to its name."""

    executor: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorHarness]:
        """The executor with everything it needs, made once per class."""
        harness = ExecutorHarness(tmp_path_factory.mktemp("executor"), cls.executor)
        yield harness
        harness.registry.close()

    def test_a_job_runs_to_its_end(self, harness: ExecutorHarness) -> None:
        """It publishes its version, and its process ends with 0."""
        claim, run = harness.start()
        assert harness.ended(run) == 0, harness.log(claim)
        job = harness.job(claim)
        assert (job.state, job.error) == ("succeeded", None)
        assert harness.registry.verify(f"{job.adapter}@{job.version}") == []

    def test_several_jobs_run_at_once(self, harness: ExecutorHarness) -> None:
        """Each has its own process and its own version."""
        started = [harness.start(), harness.start()]
        assert [harness.ended(run) for _, run in started] == [0, 0]
        assert len({harness.job(claim).version for claim, _ in started} - {None}) == 2

    def test_a_job_that_is_killed_is_seen_to_be_and_goes_on(self, harness: ExecutorHarness) -> None:
        """The process is gone and its exit code is not 0; the next one goes on from the checkpoint, and publishes once."""
        before = len(harness.registry.versions())
        claim, run = harness.start(steps=60)
        wait_until(lambda: harness.step(claim) >= 2, "no step was reported")
        run.kill()
        assert harness.ended(run) != 0, "a process that was killed ended well, it says"
        assert harness.job(claim).state == "running", "the worker gives it back, not the executor"
        harness.registry.queue.release(claim, waiting="killed", crashed=True)
        again, run = harness.run_next()
        assert again.job == claim.job
        assert harness.ended(run) == 0, harness.log(claim)
        assert harness.job(claim).state == "succeeded"
        assert len(harness.registry.versions()) == before + 1
        kinds = [event.kind for event in harness.registry.queue.events_after(claim.job, 0)]
        assert kinds.count("succeeded") == 1

    def test_a_job_that_is_stopped_goes_back_to_the_queue(self, harness: ExecutorHarness) -> None:
        """With a checkpoint, and without counting as a crash."""
        claim, run = harness.start(steps=ENDLESS)
        wait_until(lambda: harness.step(claim) >= 1, "no step was reported")
        run.stop()
        assert harness.ended(run) == 0
        job = harness.job(claim)
        assert (job.state, (job.progress or {}).get("crashes", 0)) == ("queued", 0)
        assert (harness.registry.home.jobs / job.id / "checkpoint").is_dir()
        harness.registry.queue.request(job.id, "cancel")

    def test_a_job_hears_that_it_is_cancelled(self, harness: ExecutorHarness) -> None:
        """Through the registry alone, wherever it runs."""
        claim, run = harness.start(steps=ENDLESS)
        wait_until(lambda: harness.step(claim) >= 1, "no step was reported")
        harness.registry.queue.request(claim.job, "cancel")
        assert harness.ended(run) == 0
        assert harness.job(claim).state == "cancelled"

    def test_a_claim_that_is_lost_changes_nothing(self, harness: ExecutorHarness) -> None:
        """A process with an old claim ends by itself, with another exit code than 0."""
        before = len(harness.registry.versions())
        claim, run = harness.start(steps=ENDLESS)
        wait_until(lambda: harness.step(claim) >= 1, "no step was reported")
        harness.registry.queue.release(claim, waiting="it is another worker's")
        taken = harness.registry.queue.claim("another", lease=2 * PATIENCE)
        assert taken is not None
        assert harness.ended(run) != 0
        job = harness.job(claim)
        assert (job.state, job.owner) == ("running", "another")
        assert len(harness.registry.versions()) == before
        harness.registry.queue.finish(Claim(taken.id, taken.fence), "cancelled", error="the test is over")
