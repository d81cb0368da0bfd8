"""Jobs whose gateway, workers and processes are killed at random: each ends once, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.gateway.serve_process import TINY, start_server
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.plugins.testing import write_rows
from tunery.registry.home import Home
from tunery.registry.jobs.table import ENDED
from tunery.registry.records import JobRequest, StoredEvent
from tunery.registry.registry import Registry

STEPS = 60
TENANTS = ("acme", "globex", "initech")


class Chaos:
    """Two workers on one home, and a gateway if there is one, killed and started again."""

    def __init__(self, folder: Path, home: Home, base_folder: Path, *, seed: int, gateway: bool) -> None:
        self.gateway = gateway
        self.folder, self.home, self.base_folder = folder, home, base_folder
        self.random = random.Random(seed)
        self.environment = os.environ | {"TUNERY_HOME": str(home.root), "OMP_NUM_THREADS": "1"}
        self.workers = [self.start_worker(), self.start_worker()]
        self.stack = contextlib.ExitStack()
        self.killed: Counter[str] = Counter()
        if gateway:
            self.start_gateway()

    def start_worker(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "tunery.gateway.cli", "worker"], env=self.environment)

    def start_gateway(self) -> None:
        """Start a gateway in place of the last one, which is killed."""
        self.stack.close()
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(start_server(self.folder, self.home, self.base_folder, *TINY, "--no-worker"))

    def kill_something(self) -> None:
        """SIGKILL to a worker, to the process of a job, or to the gateway."""
        what = self.random.choice(("worker", "job", "job", "gateway") if self.gateway else ("worker", "job"))
        if what == "gateway":
            self.start_gateway()
        elif what == "worker":
            index = self.random.randrange(len(self.workers))
            self.workers[index].kill()
            self.workers[index].wait()
            self.workers[index] = self.start_worker()
        else:
            jobs = [child for worker in self.workers for child in _children(worker.pid)]
            if not jobs:
                return
            with contextlib.suppress(psutil.NoSuchProcess):
                self.random.choice(jobs).kill()
        self.killed[what] += 1

    def stop(self) -> None:
        self.stack.close()
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            worker.wait(timeout=600)


def _children(pid: int) -> list[psutil.Process]:
    """The processes of a worker's jobs."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children()
        return found
    except psutil.NoSuchProcess:
        return []


def submit(registry: Registry, base_folder: Path, rows: Path, count: int) -> list[str]:
    base = resolve_base(str(base_folder), registry=registry, plugins=load_plugins(allow=()), name="tiny")
    ids = []
    for number in range(count):
        tenant = TENANTS[number % len(TENANTS)]
        file = registry.data_files.add(rows, tenant=tenant, purpose="fine-tune", name="rows.jsonl")
        request = JobRequest(
            adapter=f"{tenant}/bot",
            trainer="lora",
            base=base.digest,
            data=(file.id,),
            alias="production",
            force=True,
            model_name=f"ft:tiny:{tenant}::{number}",
            parameters={"max_steps": STEPS, "checkpoint_every": 5, "precision": "float32", "seed": number},
        )
        ids.append(registry.queue.submit(request, tenant=tenant).id)
    return ids


@pytest.mark.parametrize(
    ("count", "kills", "pause", "gateway"),
    [
        pytest.param(2, 2, 6.0, False, marks=[pytest.mark.slow, pytest.mark.timeout(1200)], id="short"),
        pytest.param(20, 50, 2.5, True, marks=[pytest.mark.soak, pytest.mark.timeout(3600)], id="long"),
    ],
)
def test_every_job_ends_once_and_nothing_is_lost(
    count: int, kills: int, pause: float, gateway: bool, tiny_base_folder: Path, tmp_path: Path
) -> None:
    home, seed = Home(tmp_path / "home"), random.randrange(10_000)
    print(f"seed {seed}")
    with Registry.open(home) as registry:
        jobs = submit(registry, tiny_base_folder, write_rows(tmp_path / "rows.jsonl", 40), count)
        chaos = Chaos(tmp_path, home, tiny_base_folder, seed=seed, gateway=gateway)
        try:
            while sum(chaos.killed.values()) < kills and not _ended(registry, jobs):
                time.sleep(chaos.random.expovariate(1 / pause))
                chaos.kill_something()
            while not _ended(registry, jobs):
                time.sleep(0.2)
        finally:
            chaos.stop()
        print(f"killed: {dict(chaos.killed)}; claims: {sum(registry.job(job).fence for job in jobs)}")
        check(registry, jobs)


def _ended(registry: Registry, jobs: list[str]) -> bool:
    return all(registry.job(job).state in ENDED for job in jobs)


def check(registry: Registry, jobs: list[str]) -> None:
    """Everything that must hold whatever was killed."""
    states = Counter(registry.job(job).state for job in jobs)
    lost = [job for job in jobs if registry.job(job).code == "worker_lost"]
    assert states["succeeded"] + len(lost) == len(jobs), [registry.job(job).error for job in jobs]
    versions = registry.versions()
    made = Counter(version.manifest["job"] for version in versions)
    assert made == Counter({job: 1 for job in jobs if registry.job(job).state == "succeeded"})
    assert registry.verify() == []
    for adapter in registry.adapters():
        numbers = {version.number for version in versions if version.adapter == adapter}
        assert set(registry.aliases(adapter).values()) <= numbers
    assert len(registry.queue.names()) == len(versions)
    for job in set(jobs) - set(lost):
        events = [*_all_events(registry, job)]
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert [event.kind for event in events].count("succeeded") == 1
        assert events[-1].kind == "succeeded"
        assert {event.data["step"] for event in events if event.kind == "step"} == set(range(1, STEPS + 1))
    registry.collect(older_than=0)
    assert registry.verify() == []


def _all_events(registry: Registry, job: str) -> Iterator[StoredEvent]:
    number = 0
    while events := registry.queue.events_after(job, number):
        yield from events
        number = events[-1].number
