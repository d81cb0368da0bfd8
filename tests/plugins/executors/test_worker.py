"""The worker: claims what it may, watches the processes, and gives back what they did not finish."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from tunery.plugins.discovery import load_plugins
from tunery.plugins.executors.executor import Assignment
from tunery.plugins.executors.local import LocalExecutor, LocalJob
from tunery.plugins.executors.worker import Worker
from tunery.plugins.testing import write_rows
from tunery.plugins.training.queued.heartbeat import heartbeat
from tunery.registry import Base
from tunery.registry.configuration.settings import JobsSettings
from tunery.registry.errors import InvalidInput, StorageFailed
from tunery.registry.jobs.queue import Claim
from tunery.registry.records import Job, JobRequest
from tunery.registry.registry import Registry

pytestmark = pytest.mark.timeout(1200)


class FakeRun:
    """A process that ends when the test says so."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.stopped = self.killed = False

    def poll(self) -> int | None:
        return self.code

    def stop(self) -> None:
        self.stopped, self.code = True, 0

    def kill(self) -> None:
        self.killed, self.code = True, -9


class FakeExecutor:
    """Starts no processes; `runs` are the jobs that it was given."""

    def __init__(self) -> None:
        self.runs: list[tuple[Assignment, FakeRun]] = []
        self.refuses: list[Exception] = []

    def start(self, assignment: Assignment) -> FakeRun:
        if self.refuses:
            raise self.refuses.pop()
        self.runs.append((assignment, FakeRun()))
        return self.runs[-1][1]


@pytest.fixture
def submit(registry: Registry, tmp_path: Path) -> Callable[[], Job]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    file = registry.data_files.add(rows, tenant="acme", purpose="fine-tune", name="rows.jsonl")
    request = JobRequest(adapter="acme/bot", trainer="lora", base="b" * 64, data=(file.id,))
    return lambda: registry.queue.submit(request, tenant="acme")


@contextmanager
def running(registry: Registry, executor: FakeExecutor | LocalExecutor, **settings: float) -> Iterator[list[str]]:
    """A worker in a thread; yields what it says."""
    said: list[str] = []
    worker = Worker(registry, executor, JobsSettings(**settings), say=said.append)  # type: ignore[arg-type]
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield said
    finally:
        worker.stop()
        thread.join(timeout=600)
        assert not thread.is_alive()


def wait_until(true: Callable[[], object], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def test_as_many_jobs_run_as_are_allowed(registry: Registry, submit: Callable[[], Job]) -> None:
    jobs, executor = [submit() for _ in range(3)], FakeExecutor()
    with running(registry, executor, concurrency=2):
        wait_until(lambda: len(executor.runs) == 2)
        first, run = executor.runs[0]
        registry.queue.finish(first.claim, "failed", error="no")
        run.code = 0
        wait_until(lambda: len(executor.runs) == 3)
    assert [assignment.job.id for assignment, _ in executor.runs] == [job.id for job in jobs]
    assert executor.runs[0][0].home == registry.home.root


@pytest.mark.parametrize(("code", "how"), [(-9, "was killed by signal 9"), (1, "ended with exit code 1")])
def test_a_job_whose_process_died_goes_back(
    code: int, how: str, registry: Registry, submit: Callable[[], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery.plugins.executors.worker.BACK_OFF_SECONDS", 1e9)
    job, executor = submit(), FakeExecutor()
    with running(registry, executor):
        wait_until(lambda: executor.runs)
        executor.runs[0][1].code = code
        wait_until(lambda: registry.job(job.id).state == "queued")
    assert how in (registry.job(job.id).waiting or "")
    # The worker that gave it back leaves it to others for a while.
    assert len(executor.runs) == 1


def test_a_worker_that_stops_asks_its_jobs_to_stop(registry: Registry, submit: Callable[[], Job]) -> None:
    submit()
    executor = FakeExecutor()
    with running(registry, executor):
        wait_until(lambda: executor.runs)
    assert executor.runs[0][1].stopped
    assert not executor.runs[0][1].killed


def test_an_executor_that_cannot_start_a_process_leaves_the_job_in_the_queue(
    registry: Registry, submit: Callable[[], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery.plugins.executors.worker.BACK_OFF_SECONDS", 0.1)
    job, executor = submit(), FakeExecutor()
    executor.refuses = [StorageFailed("the disk is full")]
    with running(registry, executor):
        wait_until(lambda: executor.runs)
    assert executor.runs[0][0].claim.fence == 2
    assert executor.runs[0][0].job.id == job.id


def test_what_is_no_executor_is_refused() -> None:
    with pytest.raises(InvalidInput, match="unknown executor 'ray'"):
        load_plugins(allow=()).executor("ray")


# -- real processes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trainable(
    registry: Registry, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked_jobs: None
) -> JobRequest:
    """A request that a process can train."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    file = registry.data_files.add(rows, tenant="acme", purpose="fine-tune", name="rows.jsonl")
    return JobRequest(
        adapter="acme/bot",
        trainer="lora",
        base=tiny_base.digest,
        data=(file.id,),
        force=True,
        model_name="ft:tiny:acme::1",
        parameters={"max_steps": 40, "checkpoint_every": 2, "precision": "float32", "seed": 3},
    )


@pytest.mark.slow
def test_a_job_whose_process_is_killed_goes_on_and_publishes_once(
    registry: Registry, trainable: JobRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery.plugins.executors.worker.BACK_OFF_SECONDS", 0.1)
    started: list[int] = []

    class Noting(LocalExecutor):
        def start(self, assignment: Assignment) -> LocalJob:
            run = super().start(assignment)
            started.append(run.pid)
            return run

    job = registry.queue.submit(trainable, tenant="acme")
    with running(registry, Noting()) as said:
        wait_until(lambda: ((registry.job(job.id).progress or {}).get("step") or 0) >= 4)
        os.kill(started[0], signal.SIGKILL)
        wait_until(lambda: registry.job(job.id).state in ("succeeded", "failed"))
        ended = registry.job(job.id)
        assert ended.state == "succeeded", ended.error
        wait_until(lambda: any("acme/bot@1" in line for line in said))
    assert [version.name for version in registry.versions()] == ["acme/bot@1"]
    assert ended.fence == len(started) == 2
    assert registry.verify() == []
    events = registry.queue.events_after(job.id, 0)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [event.kind for event in events].count("succeeded") == 1
    steps = [event.data["step"] for event in events if event.kind == "step"]
    assert set(steps) == set(range(1, 41))
    again = max(event.number for event in events if event.kind == "started")
    first = next(event.data["step"] for event in events if event.kind == "step" and event.number > again)
    assert first > 2, "the second process goes on after a checkpoint"
    assert first % 2 == 1
    assert registry.queue.names() == {"ft:tiny:acme::1": ("acme/bot", 1)}
    # A model for each of the last epochs, once, though a process was killed.
    kept = registry.checkpoints.of_job(job.id)
    assert [checkpoint.name for checkpoint in kept] == [f"ft:tiny:acme::1:ckpt-step-{step.step}" for step in kept]
    assert len(kept) == 3
    assert len({checkpoint.digest for checkpoint in kept}) == 3
    assert all(path.exists() for checkpoint in kept for path in registry.files(checkpoint.version).values())
    steps_kept = sorted({event.data["step"] for event in events if event.kind == "checkpoint_kept"})
    assert [checkpoint.step for checkpoint in kept] == steps_kept[:-4:-1]


@pytest.mark.slow
def test_keeping_checkpoints_changes_nothing_of_what_is_trained(registry: Registry, trainable: JobRequest) -> None:
    short = msgspec.structs.replace(
        trainable,
        parameters=trainable.parameters | {"max_steps": 6, "batch_size": 16, "eval_every": 6, "checkpoint_every": 0},
    )
    jobs = [
        registry.queue.submit(msgspec.structs.replace(short, model_name=name), tenant="acme")
        for name in (None, "ft:tiny:acme::2")
    ]
    with running(registry, LocalExecutor()):
        wait_until(lambda: all(registry.job(job.id).state in ("succeeded", "failed") for job in jobs))
    assert [registry.job(job.id).error for job in jobs] == [None, None]
    without, beside = registry.versions()
    assert without.digest == beside.digest
    assert registry.checkpoints.of_job(jobs[0].id) == []
    kept = registry.checkpoints.of_job(jobs[1].id)
    assert [checkpoint.step for checkpoint in kept] == [6, 3]
    assert set(kept[0].metrics) == {"train_loss", "train_token_accuracy", "eval_loss", "token_accuracy"}
    assert set(kept[1].metrics) == {"train_loss", "train_token_accuracy"}
    assert 0 <= kept[0].metrics["token_accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "state"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_running_job_stops_when_it_is_asked_to(
    wanted: str, state: str, registry: Registry, trainable: JobRequest
) -> None:
    long = msgspec.structs.replace(trainable, parameters=trainable.parameters | {"max_steps": 100_000})
    job = registry.queue.submit(long, tenant="acme")
    with running(registry, LocalExecutor()):
        wait_until(lambda: ((registry.job(job.id).progress or {}).get("step") or 0) >= 2)
        registry.queue.request(job.id, wanted)  # type: ignore[arg-type]
        wait_until(lambda: registry.job(job.id).state == state)
    assert registry.versions() == []
    assert registry.job(job.id).wanted is None


class Mixed(LocalExecutor):
    """Starts processes, but for the jobs in `fake`."""

    def __init__(self, *fake: str) -> None:
        self.fake = fake
        self.claims: dict[str, tuple[Claim, FakeRun]] = {}

    def start(self, assignment: Assignment) -> LocalJob | FakeRun:  # type: ignore[override]
        if assignment.job.id not in self.fake:
            return super().start(assignment)
        self.claims[assignment.job.id] = (assignment.claim, FakeRun())
        return self.claims[assignment.job.id][1]


@pytest.mark.slow
def test_a_job_waits_for_memory_that_others_use_and_says_so(
    registry: Registry, submit: Callable[[], Job], trainable: JobRequest
) -> None:
    (registry.home.root / "config.toml").write_text("[jobs]\nmemory_gb = 8\n")
    hog = submit()
    executor = Mixed(hog.id)
    with running(registry, executor, concurrency=2, memory_gb=8):
        wait_until(lambda: executor.claims)
        claim, run = executor.claims[hog.id]
        registry.queue.report(claim, [], progress={"peak_bytes": 8 * 10**9 - 1})
        with heartbeat(registry, claim, on_wanted=print, on_lost=print):
            job = registry.queue.submit(trainable, tenant="acme")
            wait_until(lambda: "GB of memory" in (registry.job(job.id).waiting or ""))
            waiting = registry.job(job.id)
            assert (waiting.state, waiting.fence) == ("queued", 1)
            assert (waiting.progress or {})["needed_bytes"] > 10**7
            # It is left alone until there is room, also after the queue was looked at again.
            time.sleep(6)
            assert registry.job(job.id) == waiting
        registry.queue.finish(claim, "failed", error="enough")
        run.code = 0
        wait_until(lambda: registry.job(job.id).state in ("succeeded", "failed"))
    assert registry.job(job.id).state == "succeeded", registry.job(job.id).error
    assert registry.job(job.id).fence == 2


@pytest.mark.slow
def test_a_job_that_can_never_fit_fails_at_once(registry: Registry, trainable: JobRequest) -> None:
    (registry.home.root / "config.toml").write_text("[jobs]\nmemory_gb = 0.01\n")
    job = registry.queue.submit(trainable, tenant="acme")
    with running(registry, LocalExecutor(), memory_gb=0.01):
        wait_until(lambda: registry.job(job.id).state == "failed")
    ended = registry.job(job.id)
    assert (ended.code, ended.fence) == ("out_of_memory", 1)
    assert "0.01 GB may be used" in (ended.error or "")


@pytest.mark.slow
def test_a_job_goes_on_where_its_worker_stopped(registry: Registry, trainable: JobRequest) -> None:
    long = msgspec.structs.replace(trainable, parameters=trainable.parameters | {"max_steps": 400})
    job = registry.queue.submit(long, tenant="acme")
    with running(registry, LocalExecutor()):
        wait_until(lambda: ((registry.job(job.id).progress or {}).get("step") or 0) >= 2)
    given_back = registry.job(job.id)
    assert (given_back.state, given_back.owner) == ("queued", None)
    assert "goes on from its checkpoint" in (given_back.waiting or "")
    step = (given_back.progress or {})["step"]
    with running(registry, LocalExecutor()):
        wait_until(lambda: registry.job(job.id).state in ("succeeded", "failed"))
    assert registry.job(job.id).state == "succeeded", registry.job(job.id).error
    events = registry.queue.events_after(job.id, 0, limit=5000)
    steps = [event.data["step"] for event in events if event.kind == "step"]
    assert steps == list(range(1, 401)), f"stopped after step {step}, with a checkpoint"


@pytest.mark.slow
def test_what_cannot_be_trained_fails_with_its_code_and_every_finding(
    registry: Registry, trainable: JobRequest, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user", "content": "a"}]}\nnot json\n' + "{}\n" * 30)
    file = registry.data_files.add(bad, tenant="acme", purpose="fine-tune", name="bad.jsonl")
    job = registry.queue.submit(msgspec.structs.replace(trainable, data=(file.id,)), tenant="acme")
    gone = registry.queue.submit(trainable, tenant="acme")
    registry.data_files.path(registry.data_files.get(trainable.data[0])).unlink()
    rows = write_rows(tmp_path / "more.jsonl", 41)
    other = registry.data_files.add(rows, tenant="acme", purpose="fine-tune", name="more.jsonl")
    damaged = registry.queue.submit(msgspec.structs.replace(trainable, data=(other.id,)), tenant="acme")
    blob = registry.data_files.path(other)
    blob.write_bytes(blob.read_bytes().replace(b"a", b"b", 1))
    with running(registry, LocalExecutor(), concurrency=2):
        wait_until(lambda: {registry.job(each.id).state for each in (job, gone, damaged)} == {"failed"})
    assert registry.job(damaged.id).code == "file_damaged"
    assert "upload the file again" in (registry.job(damaged.id).error or "")
    ended = registry.job(job.id)
    assert ended.code == "schema"
    assert "bad.jsonl:1" in (ended.error or "")
    assert "bad.jsonl:2" in (ended.error or "")
    assert "tunery data check bad.jsonl" in (ended.error or "")
    assert str(registry.home.root) not in (ended.error or "")
    assert registry.job(gone.id).code == "storage_failed"
    assert registry.versions() == []
