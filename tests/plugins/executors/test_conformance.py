"""The built-in executor passes the suite that is there for everybody's; one that is broken does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tunery.plugins.executors.executor import Assignment
from tunery.plugins.executors.local import LocalExecutor, LocalJob
from tunery.plugins.testing import ExecutorConformance, ExecutorHarness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def forked(request: pytest.FixtureRequest) -> None:
    """Fork all processes but those of one test, which are started as everywhere else."""
    if request.function is not ExecutorConformance.test_a_job_runs_to_its_end:
        request.getfixturevalue("forked_jobs")


class TestLocal(ExecutorConformance):
    executor = "local"


class Deaf(LocalExecutor):
    """All its processes end well, it says."""

    def start(self, assignment: Assignment) -> LocalJob:
        run = super().start(assignment)

        class Claimed(LocalJob):
            def poll(self) -> int | None:
                return 0 if super().poll() is not None else None

        return Claimed(run._process)


@pytest.fixture
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorHarness]:
    harness = ExecutorHarness(tmp_path_factory.mktemp("broken"), "local")
    harness.executor = Deaf()
    yield harness
    harness.registry.close()


def test_an_executor_that_takes_every_end_for_a_good_one_is_found_out(broken: ExecutorHarness) -> None:
    with pytest.raises(AssertionError, match="ended well, it says"):
        ExecutorConformance().test_a_job_that_is_killed_is_seen_to_be_and_goes_on(broken)
