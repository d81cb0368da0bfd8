"""Threads: how many, what libgomp is set to, and that fewer compute where they must share cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.gateway.engine.models.native.kernels import load_kernels
from tunery.plugins.runtime.threads import Governor, Sample, available_cores, take_sample

USABLE = len(os.sched_getaffinity(0))


def cgroups(root: Path, *, own: str, files: dict[str, str]) -> Path:
    """A root with /proc/self/cgroup and files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, USABLE),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1),
        ("0::/docker/from-the-host\n", {"cpu.max": "100000 100000"}, 1),
        ("3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, USABLE),
        ("0::/\n", {"cpu.max": "nonsense"}, USABLE),
        ("0::/\n", {"cpu.max": "100000 0"}, USABLE),
        ("", {}, USABLE),
    ],
    ids=[
        "no quota",
        "one core",
        "half a core",
        "around",
        "a container",
        "version 1",
        "none in 1",
        "odd",
        "zero",
        "none",
    ],
)
def test_no_more_threads_than_the_quota_pays_for(tmp_path: Path, own: str, files: dict[str, str], cores: int) -> None:
    assert available_cores(cgroups(tmp_path, own=own, files=files)) == cores


def settings(environment: dict[str, str], threads: int = 0) -> tuple[int, str, str]:
    """In a new process: torch's threads, OMP_NUM_THREADS and GOMP_SPINCOUNT after `apply_threads`."""
    code = (
        f"import os; from tunery.plugins.runtime.threads import apply_threads; apply_threads({threads}); import torch\n"
        "print(torch.get_num_threads(), os.environ.get('OMP_NUM_THREADS'), os.environ.get('GOMP_SPINCOUNT'), sep=',')"
    )
    base = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=base | environment, capture_output=True, text=True, check=True
    )
    count, omp, spin = done.stdout.strip().split(",")
    return int(count), omp, spin


@pytest.mark.slow
def test_what_the_user_set_is_kept() -> None:
    assert settings({}) == (available_cores(), str(available_cores()), "3000")
    assert settings({"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "5"}) == (1, "1", "5")
    assert settings({"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}, threads=1) == (1, "1", "None")


# -- the governor -----------------------------------------------------------------------------------------------------

SECOND = 1_000_000_000


class Machine:
    """Samples of a process whose threads run and stand in line for given shares of each interval."""

    def __init__(self, governor: Governor) -> None:
        self.governor = governor
        self.sample = Sample(0.0, {}, 0.0)

    def pass_time(self, shares: dict[int, tuple[float, float]], *, idle: float | None, intervals: int = 1) -> int:
        for _ in range(intervals):
            before, span = self.sample, Governor.INTERVAL
            tasks = {
                task: tuple(
                    int(old + share * span * SECOND)
                    for old, share in zip(before.tasks.get(task, (0, 0)), both, strict=True)
                )
                for task, both in shares.items()
            }
            known = None if idle is None else (before.idle or 0.0) + idle * span
            self.sample = Sample(before.when + span, tasks, known)  # type: ignore[arg-type]
            self.governor.observe(before, self.sample)
        return self.governor.threads


def governed(most: int = 2) -> tuple[Machine, list[int]]:
    applied: list[int] = []
    return Machine(Governor(most, applied.append)), applied


FREE = {1: (1.0, 0.0), 2: (1.0, 0.0)}
SHARED = {1: (1.0, 0.0), 2: (0.5, 0.5)}


def test_a_thread_that_shares_its_core_stops_computing_and_comes_back() -> None:
    machine, applied = governed()
    assert machine.pass_time(FREE, idle=0.0, intervals=5) == 2
    assert machine.pass_time(SHARED, idle=0.0, intervals=2) == 1
    assert machine.pass_time({1: (1.0, 0.0)}, idle=0.1, intervals=10) == 1
    assert machine.pass_time({1: (1.0, 0.0)}, idle=1.0, intervals=4) == 2
    assert applied == [1, 2]


def test_a_little_company_changes_nothing() -> None:
    machine, applied = governed()
    assert machine.pass_time({1: (0.95, 0.05), 2: (0.8, 0.2)}, idle=0.0, intervals=20) == 2
    assert not applied


def test_the_number_of_threads_stays_while_nothing_is_computed() -> None:
    machine, applied = governed()
    machine.pass_time(SHARED, idle=0.0, intervals=2)
    assert machine.pass_time({1: (0.01, 0.0)}, idle=2.0, intervals=20) == 1
    assert machine.pass_time({1: (0.1, 0.3), 2: (0.0, 0.0)}, idle=1.0, intervals=20) == 1
    assert applied == [1]


def test_where_free_cores_are_unknown_one_more_is_tried_now_and_then() -> None:
    machine, applied = governed()
    machine.pass_time(SHARED, idle=None, intervals=2)
    machine.pass_time({1: (1.0, 0.0)}, idle=None, intervals=int(Governor.BLIND / Governor.INTERVAL) + 1)
    assert applied == [1, 2]


def test_one_busy_core_of_many_takes_one_thread() -> None:
    machine, applied = governed(16)
    most = dict.fromkeys(range(15), (1.0, 0.0))
    machine.pass_time(most | {15: (0.5, 0.5)}, idle=0.0, intervals=2)
    assert machine.pass_time(most, idle=0.0, intervals=20) == 15
    assert applied == [15]


@pytest.mark.slow
@given(
    most=st.integers(1, 8),
    shares=st.lists(
        st.tuples(
            st.dictionaries(st.integers(0, 9), st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8),
            st.none() | st.floats(0, 8),
        ),
        max_size=30,
    ),
)
def test_some_thread_always_computes_and_never_more_than_all(
    most: int, shares: list[tuple[dict[int, tuple[float, float]], float | None]]
) -> None:
    machine, applied = governed(most)
    for each, idle in shares:
        assert 1 <= machine.pass_time(each, idle=idle) <= most
    assert all(1 <= threads <= most for threads in applied)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Processes that take every core they get."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


COMPUTING = """
from tunery.plugins.runtime.compute import prepare_compute
prepare_compute(2)
import torch
from tunery.plugins.runtime import threads
from tunery.gateway.engine.models.native.kernels import load_kernels
kernels, x = load_kernels(), torch.randn(2000, 512)
h, gain, out = x.clone(), torch.ones(512), torch.empty(2000, 512)
while threads._governor.threads == 2:
    kernels.norm(h.data_ptr(), None, 0, 2000, 512, gain.data_ptr(), 1e-6, out.data_ptr(), 1)
threads.follow_governor()
print(threads._governor.threads, torch.get_num_threads())
"""


@pytest.mark.slow
@pytest.mark.skipif(load_kernels() is None, reason="there are no native kernels")
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not count waiting")
def test_a_real_process_beside_busy_cores_computes_with_fewer_threads() -> None:
    with busy(2 * (os.cpu_count() or 1)):
        done = subprocess.run(
            [sys.executable, "-c", COMPUTING], capture_output=True, text=True, timeout=240, check=True
        )
    assert done.stdout.split() == ["1", "1"]


def test_the_kernel_counts_this_process() -> None:
    before, after = take_sample(), take_sample()
    assert after.when >= before.when
    assert os.getpid() in after.tasks or not Path("/proc/self/schedstat").exists()
