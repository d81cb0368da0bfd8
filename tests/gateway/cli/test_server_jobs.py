"""`tunery jobs --server` on a real server, as processes, beside the same commands on its registry; the test is the
worker."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.forked_process import ForkedProcess, fork_jobs, run_tunery, start_tunery
from tests.gateway.serve_process import TINY, ServeProcess, publish, random_loras, start_server
from tests.gateway.webhooks.receiver import until
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import Quoted, StepCompleted
from tunery.plugins.testing import write_rows
from tunery.plugins.training.queued.reporter import note_of
from tunery.plugins.training.queued.success import success_of
from tunery.registry import Job, NewVersion
from tunery.registry.home import Home
from tunery.registry.jobs.queue import Claim
from tunery.registry.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

QUOTE = Quoted(tokens=80, steps=20, minutes=0.1, peak_bytes=10**9, micro_batch_size=4, why="it fits")
KEY = "sk-do-not-show-this"


def step(number: int) -> StepCompleted:
    return StepCompleted(
        step=number, steps=20, loss=2.5 - number / 100, learning_rate=0.1, grad_norm=1.0, tokens=40, seconds=0.5
    )


@dataclass
class Both:
    """One home, through its server and on this machine."""

    server: ServeProcess
    registry: Registry
    rows: Path
    elsewhere: Path

    @property
    def local(self) -> dict[str, str]:
        return {**os.environ, "TUNERY_HOME": str(self.server.home.root)}

    @property
    def remote(self) -> dict[str, str]:
        """Another machine: its home is empty."""
        environment = {**os.environ, "TUNERY_HOME": str(self.elsewhere), "TUNERY_API_KEY": KEY}
        return environment | {"TUNERY_SERVER": self.server.url}

    def submit(self, *words: str) -> str:
        done = run_tunery(
            "jobs", "submit", "--base", "base", "--data", str(self.rows), "--name", "acme/bot", *words,
            environment=self.remote,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def claim(self) -> Claim:
        job = self.registry.queue.claim("test", lease=3600.0)
        assert job is not None
        return Claim(job.id, job.fence)

    def same(self, *words: str, code: int = 0) -> tuple[str, str]:
        """What a command prints, which is the same both ways."""
        local, remote = (run_tunery("jobs", *words, environment=each) for each in (self.local, self.remote))
        assert (remote.returncode, remote.stdout, remote.stderr) == (local.returncode, local.stdout, local.stderr)
        assert local.returncode == code, local.stderr
        return remote.stdout, remote.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Home:
    folder = tmp_path_factory.mktemp("home")
    home = Home(folder / "home")
    with Registry.open(home) as registry:
        base = resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins(), name="base")
        publish(registry, base, random_loras(folder, tiny_base_folder, 1), name=lambda number: "acme/first")
    return home


@pytest.fixture(scope="module")
def server(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with start_server(tmp_path_factory.mktemp("server"), home, "base", *TINY, "--no-worker") as server:
        yield server


@pytest.fixture
def both(server: ServeProcess, tmp_path: Path) -> Iterator[Both]:
    with Registry.open(server.home) as registry:
        both = Both(server, registry, write_rows(tmp_path / "rows.jsonl", 20), tmp_path / "elsewhere")
        yield both
        for job in registry.jobs():
            if job.state in ("queued", "running"):
                registry.queue.request(job.id, "cancel")


def test_a_job_is_submitted_with_all_that_was_given(both: Both, tmp_path: Path) -> None:
    held_out = write_rows(tmp_path / "held-out.jsonl", 7)
    job_id = both.submit(
        "--val", str(held_out), "--set", "epochs=2", "--alias", "canary", "--from", "acme/first", "--priority", "3",
        "--allow", "duplicate", "--force", "--method", "qlora",
    )  # fmt: skip
    job = both.registry.job(job_id)
    request = job.request
    assert request is not None
    assert (job.state, job.priority, job.trainer, request.adapter) == ("queued", 3, "qlora", "acme/bot")
    assert (request.alias, request.parent, request.allow, request.force) == (
        "canary", "acme/first@1", ("duplicate",), True,
    )  # fmt: skip
    assert request.parameters["epochs"] == "2"
    for file, rows in zip((*request.data, request.validation or ""), (both.rows, held_out), strict=True):
        stored = both.registry.data_files.get(file)
        assert both.registry.data_files.path(stored).read_bytes() == rows.read_bytes()
    shown = json.loads(both.same("show", job_id)[0])
    assert (shown["data"], shown["validation"], shown["base"]) == (list(request.data), request.validation, "base")
    assert shown["last"]["kind"] == "queued"


def test_what_is_refused_leaves_nothing_and_exits_as_without_a_server(both: Both, tmp_path: Path) -> None:
    files = both.registry.data_files.page(tenant=None, purpose=None, after=None, limit=1000)
    jobs = both.registry.jobs()
    rows = str(both.rows)
    for words, code, message in (
        (("--base", "base", "--data", rows, "--name", "bot"), 2, "bot"),
        (("--base", "base", "--data", rows, "--name", "acme/bot", "--set", "rate=1"), 2, "rate"),
        (("--base", "none", "--data", rows, "--name", "acme/bot"), 2, "none is not available"),
        (("--base", "base", "--data", f"{rows}.none", "--name", "acme/bot"), 2, "is not a file"),
        (("--base", "base", "--data", rows, "--data", rows, "--name", "acme/bot"), 2, "one training file"),
        (("--base", "base", "--data", rows, "--name", "acme/bot", "--device", "cpu"), 2, "leave --device out"),
    ):
        done = run_tunery("jobs", "submit", *words, environment=both.remote)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
        assert KEY not in done.stderr
    assert both.registry.data_files.page(tenant=None, purpose=None, after=None, limit=1000) == files
    assert both.registry.jobs() == jobs


def test_a_job_is_paused_resumed_and_cancelled(both: Both) -> None:
    job_id = both.submit()

    def run(*words: str) -> tuple[int, str, str]:
        done = run_tunery("jobs", *words, environment=both.remote)
        return done.returncode, done.stdout, done.stderr

    assert run("pause", job_id) == (0, f"{job_id} is paused; continue it with tunery jobs resume {job_id}\n", "")
    assert "is paused; continue it with" in both.same("watch", job_id, code=8)[1]
    both.same("pause", job_id, code=4)
    assert run("resume", job_id) == (0, f"{job_id} is queued\n", "")
    both.same("resume", job_id, code=4)
    claim = both.claim()
    assert run("pause", job_id)[1].startswith(f"{job_id} pauses after its current step")
    assert run("cancel", job_id) == (0, f"{job_id} was asked to stop\n", "")
    both.registry.queue.finish(claim, "cancelled", error="The job was cancelled")
    both.same("watch", job_id, code=130)
    assert "is cancelled and cannot be cancelled" in both.same("cancel", job_id, code=4)[1]


def test_jobs_are_shown_the_same_both_ways(both: Both, tmp_path: Path) -> None:
    failed, succeeded = both.submit(), both.submit("--alias", "live")
    claim = both.claim()
    assert claim.job == failed
    both.registry.queue.report(claim, [note_of(QUOTE), note_of(step(2))], progress={"step": 2, "steps": 20})
    both.registry.queue.finish(claim, "failed", error="3 rows are bad", code="schema")
    claim = both.claim()
    both.registry.queue.report(claim, [note_of(QUOTE), *(note_of(step(number)) for number in range(1, 21))])
    publish_job(both.registry, both.registry.job(succeeded), claim)
    for job_id, code in ((failed, 9), (succeeded, 0)):
        both.same("show", job_id)
        both.same("logs", job_id)
        both.same("logs", "--follow", job_id)
        _, error = both.same("watch", job_id, code=code)
        assert "quote: 80 tokens" in error
        assert "step 2/20  loss 2.480" in error
    assert "error: 3 rows are bad" in both.same("watch", failed, code=9)[1]
    assert both.same("watch", succeeded)[0].startswith("acme/bot@")
    both.same("list")
    listed = json.loads(both.same("list", "--json")[0])
    assert [job["id"] for job in listed][:2] == [succeeded, failed]


def publish_job(registry: Registry, job: Job, claim: Claim) -> None:
    """End a job with a version: the one that is there already, again."""
    folder = registry.home.root / "again"
    registry.export(registry.version("acme/first", 1), folder)
    registry.publish(
        NewVersion(
            adapter=job.adapter,
            folder=folder,
            base=registry.base("base"),
            method="lora",
            manifest={},
            metrics={},
            actor="test",
            alias="live",
        ),
        job=success_of(job, claim),
    )


def test_an_id_that_is_none_is_not_found(both: Both) -> None:
    for job_id in ("ftjob-none", "..", "a/b", "x" * 300, "a b", "é"):
        for word in ("show", "watch", "logs", "pause", "resume", "cancel"):
            done = run_tunery("jobs", word, job_id, environment=both.remote)
            assert done.returncode == 3, (word, job_id, done.stderr)


def lines_of(process: ForkedProcess, *, stderr: bool = False) -> list[str]:
    return process._outputs[stderr].read_text().splitlines()


def test_following_survives_the_server(home: Home, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    arguments = (*TINY, "--no-worker", "--port", port)
    with Registry.open(home) as registry:
        with start_server(tmp_path / "a", home, "base", *arguments) as server:
            both = Both(server, registry, rows, tmp_path / "elsewhere")
            job_id = both.submit()
            logging = start_tunery("jobs", "logs", "--follow", job_id, environment=both.remote)
            watching = start_tunery("jobs", "watch", job_id, environment=both.remote)
            claim = both.claim()
            registry.queue.report(claim, [note_of(QUOTE), note_of(step(2))])
            until(lambda: len(lines_of(logging)) == 5 and len(lines_of(watching, stderr=True)) == 2)
            server.process.kill()
        registry.queue.report(claim, [note_of(step(4)), note_of(step(6))])
        with start_server(tmp_path / "b", home, "base", *arguments):
            until(lambda: len(lines_of(logging)) == 7)
            registry.queue.report(claim, [note_of(step(8))])
            registry.queue.finish(claim, "failed", error="3 rows are bad", code="schema")
            assert logging.wait(600) == 0
            _, error = watching.communicate(600)
    whole = run_tunery("jobs", "logs", job_id, environment=both.local).stdout
    assert "\n".join(lines_of(logging)) + "\n" == whole
    assert [line.split()[1] for line in error.splitlines() if line.startswith("step ")] == [
        "2/20", "4/20", "6/20", "8/20",
    ]  # fmt: skip
    assert "error: 3 rows are bad" in error


def test_a_job_is_trained_by_the_server_and_followed_to_its_end(tmp_path: Path, tiny_base_folder: Path) -> None:
    home = Home(tmp_path / "home")
    with Registry.open(home) as registry:
        resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins(), name="base")
        with start_server(tmp_path, home, "base", *TINY, prepare=fork_jobs) as server:
            both = Both(server, registry, write_rows(tmp_path / "rows.jsonl", 40), tmp_path / "elsewhere")
            words = ("--set", "max_steps=20", "--set", "precision=float32", "--set", "learning_rate=0.003", "--watch")
            done = run_tunery(
                "jobs", "submit", "--base", "base", "--data", str(both.rows), "--name", "acme/bot", "--force", *words,
                environment=both.remote,
            )  # fmt: skip
    assert done.returncode == 0, done.stderr
    job_id, version = done.stdout.splitlines()
    assert job_id.startswith("ftjob-")
    assert version == "acme/bot@1"
    assert "step 20/20  loss" in done.stderr
    assert "gate " in done.stderr
