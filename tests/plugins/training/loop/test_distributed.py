"""Two processes over gloo train what one trains: the same adapter but for rounding, one version,
and nobody is left waiting."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.forked_process import ForkedProcess, quick_jobs, start_tunery
from tunery.plugins.testing import write_pairs, write_rows
from tunery.plugins.trainers.lora import LoraTrainer
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.job.control import signal_job
from tunery.plugins.training.loop.distributed import ProcessGroup, connect_process_group
from tunery.registry import Base, Version
from tunery.registry.errors import InvalidInput
from tunery.registry.home import Home
from tunery.registry.registry import Registry

STEPS = {"precision": "float32", "max_steps": 6, "batch_size": 5, "eval_every": 3, "checkpoint_every": 2,
         "learning_rate": 0.002}  # fmt: skip


class Launcher:
    """`tunery train` on the tiny base, alone or in two processes, started by torchrun or by hand."""

    def __init__(self, home: Home, registry: Registry, rows: Path) -> None:
        self.home, self.registry, self.rows = home, registry, rows
        self.environment = os.environ | {"TUNERY_HOME": str(home.root), "OMP_NUM_THREADS": "1"}

    def train(self, processes: int, method: str = "lora", **settings: Any) -> list[ForkedProcess]:
        return self.start(processes, *self.words(method, settings))

    def words(self, method: str, settings: dict[str, Any]) -> list[str]:
        given = [word for pair in (STEPS | settings).items() for word in ("--set", "=".join(map(str, pair)))]
        return ["train", "--force", "--method", method, "--base", "tiny", "--data", str(self.rows),
                "--name", "acme/tiny", *given]  # fmt: skip

    def start(self, processes: int, *words: str, prepare: Callable[[], None] = quick_jobs) -> list[ForkedProcess]:
        """As what a launcher sets in the environment of each process."""
        shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                  "MASTER_PORT": str(free_port())}  # fmt: skip
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        environments = [self.environment | (shared | rank if processes > 1 else {}) for rank in ranks]
        return [start_tunery(*words, environment=environment, prepare=prepare) for environment in environments]

    def finish(self, processes: list[ForkedProcess]) -> list[str]:
        """What each wrote, once all have ended well."""
        outputs = [process.communicate(timeout=150) for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), outputs
        return [out for out, _ in outputs]

    def weights(self, version: Version, folder: Path) -> dict[str, torch.Tensor]:
        """What was trained, in float32: the pair, or every weight."""
        self.registry.export(version, folder)
        exact = folder / "model" / "model.safetensors"
        return dict(load_file(exact if exact.exists() else folder / "adapter_model.safetensors"))

    def events(self, job: str) -> list[dict[str, Any]]:
        path = self.home.jobs / job / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def until(self, kind: str, processes: list[ForkedProcess], *, jobs: int = 1) -> str:
        """The newest of so many jobs, once it has sent an event of a kind."""
        end = time.monotonic() + 90
        while True:
            listed = self.registry.jobs()
            if len(listed) == jobs and any(event["kind"] == kind for event in self.events(listed[0].id)):
                return listed[0].id
            assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
            assert time.monotonic() < end
            time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def launcher(home: Home, registry: Registry, tiny_base: Base, tmp_path: Path) -> Launcher:
    return Launcher(home, registry, write_rows(tmp_path / "rows.jsonl", 23))


def check_alike(launcher: Launcher, out: str, folder: Path) -> None:
    """The second version is the first but for rounding, and is reported once."""
    one, two = sorted(launcher.registry.versions(), key=lambda version: version.number)
    assert out.count(two.name) == 1
    before, after = (launcher.weights(version, folder / str(version.number)) for version in (one, two))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-5)
    for name in ("base_loss", "eval_loss", "train_loss"):
        assert two.metrics[name] == pytest.approx(one.metrics[name], rel=1e-4)
    assert two.metrics["tokens"] == one.metrics["tokens"]
    assert (one.manifest["hardware"].get("processes"), two.manifest["hardware"]["processes"]) == (None, 2)
    steps = [[e["step"] for e in launcher.events(v.manifest["job"]) if e["kind"] == "step"] for v in (one, two)]
    assert steps[0] == steps[1] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_two_processes_of_a_launcher_train_what_one_does(launcher: Launcher, tmp_path: Path) -> None:
    launcher.finish(launcher.train(1))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tunery.gateway.cli"]
    command = [sys.executable, *words, *launcher.words("lora", {})]
    done = subprocess.run(command, env=launcher.environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    check_alike(launcher, done.stdout, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "dpo"])
def test_two_processes_train_what_one_does(method: str, launcher: Launcher, tmp_path: Path) -> None:
    if method == "dpo":
        write_pairs(launcher.rows, 23)
    launcher.finish(launcher.train(1, method))
    check_alike(launcher, "".join(launcher.finish(launcher.train(2, method))), tmp_path)


@pytest.mark.slow
def test_one_that_dies_ends_the_other_and_resumed_they_give_the_same_bits(launcher: Launcher) -> None:
    settings: dict[str, Any] = {"dropout": 0.1, "max_steps": 60}
    launcher.finish(launcher.train(2, **settings))
    first, second = launcher.train(2, **settings)
    job = launcher.until("checkpoint", [first, second], jobs=2)
    second.kill()
    second.communicate()
    first.communicate(timeout=150)
    assert first.returncode != 0
    assert launcher.registry.job(job).state == "failed"
    assert launcher.events(job)[-1]["code"] == "process_lost"
    launcher.finish(launcher.start(2, "train", "--resume", job))
    whole, again = launcher.registry.versions()
    assert whole.digest == again.digest


@pytest.mark.slow
@pytest.mark.parametrize(("action", "state"), [("cancel", "cancelled"), ("pause", "paused")])
def test_an_action_sent_to_one_process_ends_all(action: Any, state: str, launcher: Launcher) -> None:
    processes = launcher.train(2, max_steps=100_000, eval_every=0, checkpoint_every=0)
    job = launcher.until("step", processes)
    signal_job(JobFolder(launcher.home.jobs / job), action)
    for process in processes:
        process.communicate(timeout=20)
        assert process.returncode != 0
    assert launcher.registry.job(job).state == state
    assert launcher.registry.versions() == []


def break_the_second() -> None:
    """Loading the model fails in the second process."""
    if os.environ["RANK"] == "1":
        LoraTrainer.load = fail  # type: ignore[assignment,method-assign]


def fail(*arguments: Any) -> Any:
    raise InvalidInput("no such luck", code="out_of_luck")


@pytest.mark.slow
def test_what_fails_in_one_process_fails_the_job_with_its_code(launcher: Launcher) -> None:
    processes = launcher.start(2, *launcher.words("lora", {}), prepare=break_the_second)
    outputs = [process.communicate(timeout=150)[1] for process in processes]
    assert all(process.returncode not in (0, None) for process in processes)
    assert "process 1 of this run failed" in outputs[0]
    (job,) = launcher.registry.jobs()
    assert job.state == "failed"
    assert "no such luck" in (job.error or "")
    assert launcher.events(job.id)[-1]["code"] == "out_of_luck"


def test_alone_nothing_is_shared_and_nothing_is_copied() -> None:
    alone = ProcessGroup()
    rows = [1, 2, 3]
    assert alone.shard(rows) is rows
    assert alone.all_gather(lambda: 7) == [7]
    state = torch.get_rng_state()
    alone.seed_step(0, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_row_is_in_one_process() -> None:
    shares = [ProcessGroup(rank, 3).shard(range(10)) for rank in range(3)]
    assert sorted(row for share in shares for row in share) == list(range(10))


def test_shards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InvalidInput, match="FSDP") as caught:
        connect_process_group("cuda")
    assert caught.value.code == "sharding_unsupported"
