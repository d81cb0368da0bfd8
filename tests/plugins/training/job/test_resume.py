"""Jobs in processes of their own: killed at any step, paused, cancelled; what they make is bit for
bit what one run makes."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.forked_process import ForkedProcess, quick_jobs, run_tunery, start_tunery
from tests.plugins.training.conftest import Train
from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import JobEvent, StepCompleted
from tunery.plugins.testing import write_rows
from tunery.plugins.training import resume
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.job.control import POLL_SECONDS, signal_job
from tunery.plugins.training.objectives.objective import Supervised
from tunery.registry import Base
from tunery.registry.errors import JobPaused, StorageFailed
from tunery.registry.home import Home
from tunery.registry.registry import Registry

METHODS = ("lora", "qlora", "full")
STEPS = 12


class Jobs:
    """`tunery train` on the tiny base, in processes."""

    def __init__(self, home: Home, registry: Registry, rows: Path) -> None:
        self.home, self.registry, self.rows = home, registry, rows
        self.environment = os.environ | {"TUNERY_HOME": str(home.root), "OMP_NUM_THREADS": "1"}

    def start(self, method: str, *more: str) -> ForkedProcess:
        settings = {"precision": "float32", "max_steps": STEPS, "batch_size": 4, "checkpoint_every": 2}
        given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        if method != "full":
            given += ["--set", "dropout=0.1"]
        return self._tunery("train", "--method", method, "--base", "tiny", "--data", str(self.rows),
                            "--name", "acme/tiny", "--force", *given, *more)  # fmt: skip

    def resume(self, job: str) -> None:
        done = self._tunery("train", "--resume", job)
        out, error = done.communicate(timeout=600)
        assert done.returncode == 0, error + out

    def run_command(self, *words: str) -> None:
        done = self._tunery("jobs", *words)
        out, error = done.communicate(timeout=600)
        assert done.returncode == 0, error + out

    def job(self) -> str:
        return self.registry.jobs()[0].id

    def step(self) -> int:
        """The last step that the newest job reported."""
        jobs = self.registry.jobs()
        path = self.home.jobs / jobs[0].id / "metrics.jsonl" if jobs else None
        if path is None or not path.exists():
            return 0
        events = [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        return max((event["step"] for event in events if event["kind"] == "step"), default=0)

    def until(self, step: int, process: ForkedProcess, seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        while self.step() < step:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.002)

    def _tunery(self, *words: str) -> ForkedProcess:
        return start_tunery(*words, environment=self.environment, prepare=quick_jobs)


@pytest.fixture
def jobs(home: Home, registry: Registry, tiny_base: Base, tmp_path: Path) -> Jobs:
    return Jobs(home, registry, write_rows(tmp_path / "rows.jsonl", 40))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_a_random_step_and_resumed_the_adapter_is_the_same_to_the_bit(method: str, jobs: Jobs) -> None:
    whole = jobs.start(method)
    out, error = whole.communicate(timeout=600)
    assert whole.returncode == 0, error + out
    (first,) = jobs.registry.versions()
    noise = random.Random(f"{method}/{os.getpid()}")
    process = jobs.start(method)
    time.sleep(0.5)
    while len(jobs.registry.jobs()) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    step = noise.randint(1, STEPS - 1)
    jobs.until(step, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    if len(jobs.registry.versions()) == 2:  # it was quicker than the signal
        assert jobs.registry.versions()[1].digest == first.digest
        return
    jobs.resume(jobs.job())
    assert jobs.registry.versions()[1].digest == first.digest, f"killed after step {step}"


@pytest.mark.slow
def test_a_paused_job_goes_on_where_it_was_and_a_second_process_may_not_join_in(jobs: Jobs) -> None:
    process = jobs.start("lora", "--set", "max_steps=50000", "--set", "checkpoint_every=0")
    jobs.until(3, process)
    second = run_tunery("train", "--resume", jobs.job(), environment=jobs.environment)
    assert second.returncode == 4
    assert "another process" in second.stderr
    jobs.run_command("pause", jobs.job())
    _, error = process.communicate(timeout=600)
    assert process.returncode == 8, error
    assert jobs.registry.job(jobs.job()).state == "paused"
    assert (jobs.home.jobs / jobs.job() / "checkpoint").is_dir()
    assert jobs.registry.versions() == []


def test_a_paused_and_resumed_run_is_the_same_to_the_bit(train: Train, registry: Registry) -> None:
    settings = {"epochs": 2, "checkpoint_every": 0, "dropout": 0.1}
    whole = train("lora", **settings)

    def pause(event: JobEvent) -> None:
        job = registry.jobs()[0]
        if isinstance(event, StepCompleted) and event.step == 5:
            signal_job(JobFolder(registry.home.jobs / job.id), "pause")
            time.sleep(3 * POLL_SECONDS)

    with pytest.raises(JobPaused, match="paused after step 5 of 16"):
        train("lora", on_event=pause, **settings)
    assert registry.jobs()[0].state == "paused"
    version = resume(
        registry.jobs()[0].id,
        registry=registry,
        plugins=load_plugins(allow=(), without=("gates",)),
        on_event=lambda _: None,
    )
    assert version.digest == whole.digest


@pytest.mark.slow
def test_a_cancelled_job_ends_at_once_and_says_how_to_go_on(jobs: Jobs) -> None:
    steps = 50_000
    process = jobs.start("lora", "--set", f"max_steps={steps}", "--set", "eval_every=0")
    jobs.until(3, process)
    jobs.run_command("cancel", jobs.job())
    out, error = process.communicate(timeout=600)
    # Work and not time: whatever else the machine does, a tenth of the run was not waited for.
    assert jobs.step() < steps // 10
    assert (process.returncode, out) == (130, "")
    last = error.splitlines()[-1]
    assert last.startswith(f"error: {jobs.job()} was cancelled after step ")
    assert last.endswith(f"go on with tunery train --resume {jobs.job()}")
    assert "Aborted" not in error
    assert jobs.registry.job(jobs.job()).state == "cancelled"
    assert jobs.registry.versions() == []


@pytest.mark.parametrize("becomes", [RuntimeError, StorageFailed, None])
def test_a_cancelled_job_is_cancelled_whatever_the_interruption_becomes(
    becomes: type[Exception] | None, train: Train, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Native code turns an interruption that lands in it into an error of its own, or swallows it."""
    monkeypatch.setattr("tunery.plugins.training.job.control.POLLS_PER_INTERRUPT", 2)
    loss, interrupted = Supervised.loss, list[bool]()

    def landed(self: Supervised, model: Any, batch: Any) -> Any:
        if interrupted:
            return loss(self, model, batch)
        try:
            interrupted.append(True)
            signal_job(JobFolder(registry.home.jobs / registry.jobs()[0].id), "cancel")
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            if becomes is not None:
                raise becomes("an error in a callback") from None
            return loss(self, model, batch)

    monkeypatch.setattr(Supervised, "loss", landed)
    with pytest.raises(KeyboardInterrupt, match="was cancelled"):
        train("lora", max_steps=100_000, eval_every=0, checkpoint_every=0)
    assert registry.jobs()[0].state == "cancelled"
    assert registry.versions() == []


def test_a_job_that_ignores_interruptions_is_cancelled_all_the_same(train: Train, registry: Registry) -> None:
    """A script's background jobs ignore SIGINT, so that Ctrl-C stops the script alone."""

    def cancel(event: JobEvent) -> None:
        if isinstance(event, StepCompleted):
            if event.step == 1:
                # In another thread: the interruption must not land in this one while it opens a file.
                folder = JobFolder(registry.home.jobs / registry.jobs()[0].id)
                asking = threading.Thread(target=signal_job, args=(folder, "cancel"))
                asking.start()
                asking.join()
            time.sleep(0.02)  # the fifty steps last longer than a look at what is asked

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt, match="was cancelled"):
            train("lora", on_event=cancel, max_steps=50, eval_every=0, checkpoint_every=0, report_rows=1)
    finally:
        signal.signal(signal.SIGINT, before)
    job = registry.jobs()[0]
    assert (job.state, job.error) == ("cancelled", "The job was cancelled")


@pytest.mark.slow
def test_resuming_with_other_data_is_refused_and_says_what_differs(jobs: Jobs) -> None:
    process = jobs.start("lora", "--set", "max_steps=50000", "--set", "eval_every=0")
    jobs.until(3, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    write_rows(jobs.rows, 41)
    done = run_tunery("train", "--resume", jobs.job(), environment=jobs.environment)
    assert done.returncode == 2
    assert "data[0].sha256" in done.stderr
    assert jobs.registry.versions() == []
