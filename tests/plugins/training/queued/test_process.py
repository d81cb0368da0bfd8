"""The process of a job, whose claim ends while it is still at work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.registry.artifacts import make_adapter, make_base
from tunery.plugins.events import Failed
from tunery.plugins.testing import write_rows
from tunery.plugins.training.queued.process import CLAIM_LOST, _Run
from tunery.registry import Base, NewVersion
from tunery.registry.jobs.queue import Claim
from tunery.registry.jobs.success import Success
from tunery.registry.records import JobRequest
from tunery.registry.registry import Registry


class Left(BaseException):
    """Instead of the end of the process."""


@pytest.fixture
def base(registry: Registry, tmp_path: Path) -> Base:
    return registry.add_base(make_base(tmp_path / "base"))


@pytest.fixture
def run(registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Run:
    def leave(code: int) -> None:
        assert code == CLAIM_LOST
        raise Left

    monkeypatch.setattr(os, "_exit", leave)
    file = registry.data_files.add(write_rows(tmp_path / "rows.jsonl", 1), tenant="acme", purpose="fine-tune", name="r")
    request = JobRequest(adapter="acme/bot", trainer="lora", base="b" * 64, data=(file.id,))
    registry.queue.submit(request, tenant="acme")
    return _Run(registry, claim_next(registry), memory=0)


def claim_next(registry: Registry) -> Claim:
    job = registry.queue.claim("here", lease=-1.0)
    assert job is not None
    return Claim(job.id, job.fence)


def succeed(registry: Registry, claim: Claim, folder: Path, base: Base) -> None:
    new = NewVersion(
        adapter="acme/bot", folder=make_adapter(folder), base=base, method="lora", manifest={}, metrics={}, actor="acme"
    )
    registry.publish(new, job=Success(job=claim.job, claim=claim, model_name="ft:x:acme::1", notes=lambda version: []))


def test_a_claim_that_is_somebody_elses_ends_the_process(run: _Run) -> None:
    claim_next(run.registry)
    with pytest.raises(Left):
        run._leave_if_lost()


def test_a_job_that_somebody_else_has_finished_ends_the_process(run: _Run, tmp_path: Path, base: Base) -> None:
    succeed(run.registry, claim_next(run.registry), tmp_path / "adapter", base)
    with pytest.raises(Left):
        run._leave_if_lost()


def test_a_claim_that_is_over_because_the_job_has_just_succeeded_does_not(
    run: _Run, tmp_path: Path, base: Base
) -> None:
    succeed(run.registry, run.claim, tmp_path / "adapter", base)
    run._leave_if_lost()


def test_nor_does_one_whose_job_has_just_failed(run: _Run) -> None:
    run.end(Failed(error="the rows are bad", code="schema"))
    assert run.registry.job(run.claim.job).state == "failed"
    run._leave_if_lost()


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (MemoryError(), "out_of_memory", "ran out of memory: an allocation failed; lower micro_batch_size"),
        (KeyError("r"), "internal_error", "KeyError: 'r'"),
    ],
)
def test_an_error_before_the_job_has_begun_has_a_code(
    error: Exception, code: str, says: str, run: _Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("tunery.plugins.training.queued.inputs.local_request", fail)
    run._train()
    job = run.registry.job(run.claim.job)
    assert (job.state, job.code) == ("failed", code)
    assert says in (job.error or "")
