"""`tunery jobs` on queued jobs, as processes; the test is the worker."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.forked_process import run_tunery, start_tunery
from tunery.gateway.cli.terminal.tables import when
from tunery.plugins.events import StepCompleted
from tunery.plugins.testing import write_rows
from tunery.plugins.training.queued.reporter import note_of
from tunery.registry import Base
from tunery.registry.home import Home
from tunery.registry.jobs.queue import Claim
from tunery.registry.registry import Registry

pytestmark = pytest.mark.slow

STEP = StepCompleted(step=1, steps=2, loss=2.5, learning_rate=0.1, grad_norm=1.0, tokens=40, seconds=0.5)


@pytest.fixture
def environment(home: Home) -> dict[str, str]:
    return {**os.environ, "TUNERY_HOME": str(home.root), "TUNERY_ACTOR": "tester"}


@pytest.fixture
def submitted(registry: Registry, tiny_base: Base, tmp_path: Path, environment: dict[str, str]) -> str:
    """The id of a job that waits."""
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    words = ("--base", "tiny", "--data", str(rows), "--name", "acme/bot", "--set", "epochs=2", "--priority", "3")
    done = run_tunery("jobs", "submit", *words, environment=environment)
    assert done.returncode == 0, done.stderr
    rows.unlink()
    return done.stdout.strip()


def tunery(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return run_tunery("jobs", *words, environment=environment)


def test_a_submitted_job_waits_with_what_it_was_given(
    submitted: str, registry: Registry, tiny_base: Base, environment: dict[str, str]
) -> None:
    job = registry.job(submitted)
    assert job.request is not None
    assert (job.state, job.tenant, job.priority, job.trainer) == ("queued", "acme", 3, "lora")
    assert (job.request.base, job.request.actor) == (tiny_base.digest, "user:tester")
    assert job.request.parameters == {"epochs": "2"}
    (file,) = job.request.data
    assert registry.data_files.path(registry.data_files.get(file)).exists()
    (listed,) = json.loads(tunery(environment, "list", "--json").stdout)
    assert (listed["id"], listed["state"]) == (submitted, "queued")
    assert json.loads(tunery(environment, "show", submitted).stdout)["priority"] == 3
    assert job.details is not None
    assert job.details["method"] == "supervised"


def test_the_list_says_when_jobs_started(submitted: str, registry: Registry, environment: dict[str, str]) -> None:
    def started() -> str:
        heads, row = tunery(environment, "list").stdout.splitlines()
        assert heads.split("\t")[-1] == "started"
        return row.split("\t")[-1]

    assert started() == "-"
    registry.queue.claim("test")
    at = registry.job(submitted).started_at
    assert at is not None
    assert started() == when(int(at))


def test_a_job_that_cannot_be_submitted_leaves_nothing(
    registry: Registry, tiny_base: Base, tmp_path: Path, environment: dict[str, str]
) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl", 20))
    for words, code in (
        (("--base", "tiny", "--data", rows, "--name", "bot"), 2),
        (("--base", "tiny", "--data", rows, "--name", "acme/bot", "--set", "rate=1"), 2),
        (("--base", "tiny", "--data", f"{rows}.none", "--name", "acme/bot"), 2),
        (("--base", "tiny", "--data", rows, "--name", "acme/bot", "--from", "acme/none"), 3),
    ):
        assert tunery(environment, "submit", *words).returncode == code, words
    assert registry.jobs() == []
    assert registry.data_files.page(tenant=None, purpose=None, after=None, limit=9) == ([], False)


def test_a_waiting_job_is_paused_resumed_and_cancelled(
    submitted: str, registry: Registry, environment: dict[str, str]
) -> None:
    paused = tunery(environment, "pause", submitted)
    assert f"{submitted} is paused; continue it with tunery jobs resume {submitted}" in paused.stdout
    assert tunery(environment, "resume", submitted).stdout == f"{submitted} is queued\n"
    assert tunery(environment, "cancel", submitted).stdout == f"{submitted} is cancelled\n"
    assert registry.job(submitted).state == "cancelled"
    again = tunery(environment, "cancel", submitted)
    assert again.returncode != 0
    assert "is cancelled and cannot be cancelled" in again.stderr
    lines = tunery(environment, "logs", submitted).stdout.splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        f"Created fine-tuning job: {submitted}", "The job was paused", "The job was resumed", "The job was cancelled",
    ]  # fmt: skip


def test_a_job_is_followed_until_it_ends(submitted: str, registry: Registry, environment: dict[str, str]) -> None:
    watching = start_tunery("jobs", "watch", submitted, environment=environment)
    logging = start_tunery("jobs", "logs", "--follow", submitted, environment=environment)
    job = registry.queue.claim("test")
    assert job is not None
    claim = Claim(job.id, job.fence)
    registry.queue.report(claim, [note_of(STEP)])
    registry.queue.release(claim, waiting="the process that ran it was killed by signal 9", crashed=True)
    job = registry.queue.claim("test")
    assert job is not None
    claim = Claim(job.id, job.fence)
    registry.queue.finish(claim, "failed", error="3 rows are bad", code="schema")
    _, error = watching.communicate(timeout=280)
    assert "step 1/2  loss 2.500" in error
    assert "warning: The job was interrupted: the process that ran it was killed by signal 9" in error
    assert "error: 3 rows are bad" in error
    assert watching.returncode != 0
    out, _ = logging.communicate(timeout=280)
    assert "Step 1/2: training loss=2.50" in out
    assert "warn: The job was interrupted" in out
    assert logging.returncode == 0


def test_a_job_whose_lease_ran_out_is_interrupted(
    submitted: str, registry: Registry, environment: dict[str, str]
) -> None:
    registry.queue.claim("test", lease=-1.0)
    (listed,) = json.loads(tunery(environment, "list", "--json").stdout)
    assert listed["state"] == "interrupted"
