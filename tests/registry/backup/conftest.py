"""A registry that has something of everything, and processes that die in the middle."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.registry.conftest import Publish
from tunery.registry.home import Home
from tunery.registry.registry import Registry
from tunery.registry.versions.upkeep import Problem

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def full(registry: Registry, publish: Publish, tmp_path: Path) -> Registry:
    """Two adapters, an uploaded file, a key, a pending upload, a base in the home and a job with a checkpoint."""
    publish("acme/support", seed=1, alias="production")
    publish("acme/support", seed=2)
    publish("globex/legal", seed=3, alias="production")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    registry.data_files.add(rows, tenant="acme", purpose="fine-tune", name="rows.jsonl")
    registry.keys.create(tenant="acme", scopes=("infer",), label="shop", actor="test")
    registry.uploads.create(
        tenant="acme", purpose="fine-tune", name="big.jsonl", mime_type="text/plain", size=9, file_expires_after=None
    )
    folder = registry.home.bases / ("b" * 64)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    registry.start_job("job-1", adapter="acme/support", trainer="lora")
    job = registry.home.jobs / "job-1"
    (job / "checkpoint").mkdir(parents=True)
    (job / "metrics.jsonl").write_text('{"kind": "started"}\n')
    (job / "lock").write_text("")
    (job / "checkpoint" / "state.safetensors").write_bytes(bytes(1000))
    (registry.home.root / "config.toml").write_text("[serve]\nport = 8001\n")
    return registry


def killed_at(step: int, act: Callable[[], object]) -> bool:
    """Do something in a process that is killed when it syncs a file for that time; whether it came so far."""

    def run() -> None:
        real, left = os.fsync, step

        def fsync(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)

        pytest.MonkeyPatch().setattr(os, "fsync", fsync)
        act()
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def problems(registry: Registry) -> list[Problem]:
    """What is wrong with the versions; the base is none that has this digest."""
    return [problem for problem in registry.verify() if not problem.version.startswith("base ")]


def tree(home: Home) -> dict[str, bytes]:
    """Every file below a home but caches, locks and the database's, by its path."""
    kept = ("blobs", "bases", "jobs", "batches", "config.toml")
    return {
        str(path.relative_to(home.root)): path.read_bytes()
        for path in sorted(home.root.rglob("*"))
        if path.is_file() and path.relative_to(home.root).parts[0] in kept
    }
