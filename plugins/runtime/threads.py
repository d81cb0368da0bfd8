"""Choose how many threads compute, and keep them from waiting for each other on a shared machine.

OpenMP threads meet at a barrier after every matrix product. Where one of them has to share its core, all the others
wait for it, by default in a busy loop that takes processor time from the very thread they wait for. Therefore:

- there are no more threads than usable cores (CPU affinity and cgroup quota);
- threads spin for some microseconds only, and then sleep;
- a governor watches how long threads wait for a core, and lets fewer of them compute while they do.

The user's own settings (OMP_NUM_THREADS, GOMP_SPINCOUNT, OMP_WAIT_POLICY) are kept.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunery.plugins.runtime.native import limit_kernel_threads

__all__ = ["Governor", "Sample", "apply_threads", "available_cores", "follow_governor"]

SPIN_COUNT = 3_000
"""Iterations of libgomp's busy loop before a thread sleeps: tens of microseconds, about the gap between two
products."""

_governor: Governor | None = None


def apply_threads(threads: int = 0) -> int:
    """Compute with `threads` threads (0: all usable cores) and start the governor. Returns the number of threads.

    Call it before torch is imported: OpenMP reads its settings once. Afterwards only the number of threads can still
    change.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    count = threads or (int(wanted) if wanted.isdecimal() and int(wanted) else available_cores())
    os.environ["OMP_NUM_THREADS"] = str(count)
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)
    _govern(count)
    return count


def follow_governor() -> None:
    """Set torch's own threads to the number that the governor allows now.

    Only for work whose results may differ in the last bit with the number of threads. Native kernels follow by
    themselves.
    """
    torch = sys.modules.get("torch")
    if _governor is not None and torch is not None and torch.get_num_threads() != _governor.threads:
        torch.set_num_threads(_governor.threads)


def _govern(count: int) -> None:
    """Start the governor, or pass the new number to the running one."""
    global _governor
    if _governor is not None:
        _governor.set_most(count)
    elif count > 1 and Path("/proc/self/schedstat").exists():
        _governor = Governor(count, limit_kernel_threads)
        threading.Thread(target=_governor.run, name="thread-governor", daemon=True).start()


def available_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: its CPU affinity, or fewer where its cgroup has a quota. At least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _cgroups(root) if (quota := _quota(folder)) is not None]
    return max(1, min(affinity, int(min(quotas, default=affinity))))


def _cgroups(root: Path) -> list[Path]:
    """Folders of this process's CPU cgroup and of its parents, for cgroups v1 and v2."""
    mounted, folders = root / "sys/fs/cgroup", []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        base = mounted if number == "0" else mounted / "cpu"
        # Inside a container the path is often the host's, while what is mounted is the container's own.
        inner = base / path.strip("/")
        folders += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(base)]
    return folders


def _quota(folder: Path) -> float | None:
    """The quota of a cgroup, in cores; None without one."""
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


@dataclass(frozen=True)
class Sample:
    """Scheduler statistics at `when` (seconds).

    `tasks` has each thread's time running and waiting for a core, in nanoseconds; `idle` the seconds for which the
    usable cores were idle, None where that is unknown.
    """

    when: float
    tasks: Mapping[int, tuple[int, int]]
    idle: float | None = None


@dataclass
class Governor:
    """Lets fewer threads compute while they wait for cores, and more again when cores are free.

    `most` is the largest number of threads; `apply` is called with each new number.
    """

    most: int
    apply: Callable[[int], None]
    threads: int = field(init=False)

    INTERVAL = 0.2
    """Seconds between samples."""
    BUSY = 0.5
    """Share of an interval; where no thread was busy for that long, nothing is computing and nothing can be
    concluded."""
    BLIND = 5.0
    """Seconds after which one more thread is tried where it is unknown whether cores are free."""

    def __post_init__(self) -> None:
        self.threads = self.most
        self._changed = float("-inf")
        self._idle: list[float] = []

    def set_most(self, most: int) -> None:
        """Govern up to `most` threads from now on."""
        self.most = self.threads = most
        self.apply(most)

    def run(self) -> None:
        """Sample and adjust forever."""
        before = take_sample()
        while True:
            time.sleep(self.INTERVAL)
            after = take_sample()
            self.observe(before, after)
            before = after

    def observe(self, before: Sample, after: Sample) -> None:
        """Adjust the number of threads after two consecutive samples."""
        span = after.when - before.when
        shares = [
            ((ran - before.tasks[task][0]) / 1e9 / span, (waited - before.tasks[task][1]) / 1e9 / span)
            for task, (ran, waited) in after.tasks.items()
            if task in before.tasks
        ]
        if span <= 0 or max((ran + waited for ran, waited in shares), default=0.0) < self.BUSY:
            return
        if self._crowded(shares):
            self._set(self.threads - 1, after.when)
        elif self.threads < self.most and self._has_room(before, after):
            self._set(self.threads + 1, after.when)

    def _crowded(self, shares: Sequence[tuple[float, float]]) -> bool:
        """Whether a computing thread loses more by waiting for a core than the others would lose without it."""
        # One of n threads is worth about 1/n; one that waits for a share of its time slows all of them by that share.
        bound = max(0.15, 0.7 / self.threads)
        return self.threads > 1 and any(
            waited > bound * (ran + waited) for ran, waited in shares if ran + waited > self.BUSY / 2
        )

    def _has_room(self, before: Sample, after: Sample) -> bool:
        """Whether a core has been idle for a while."""
        if before.idle is None or after.idle is None:
            return after.when - self._changed >= self.BLIND
        self._idle = [*self._idle, (after.idle - before.idle) / (after.when - before.when)][-3:]
        return len(self._idle) == 3 and sum(self._idle) / 3 > 0.7

    def _set(self, threads: int, when: float) -> None:
        self.threads, self._changed, self._idle = threads, when, []
        self.apply(threads)


def take_sample(proc: Path = Path("/proc")) -> Sample:
    """Read the scheduler statistics of this process's threads and of its usable cores."""
    tasks: dict[int, tuple[int, int]] = {}
    for folder in (proc / "self/task").iterdir():
        fields = _read(folder / "schedstat").split()
        if len(fields) >= 2:
            tasks[int(folder.name)] = (int(fields[0]), int(fields[1]))
    return Sample(time.monotonic(), tasks, _idle_seconds(_read(proc / "stat")))


def _idle_seconds(stat: str) -> float | None:
    """Seconds for which the usable cores were idle, from /proc/stat."""
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [fields for line in stat.splitlines() if (fields := line.split())[:1] and fields[0] in cores]
    if not lines:
        return None
    return sum(int(fields[4]) + int(fields[5]) for fields in lines) / os.sysconf("SC_CLK_TCK")
