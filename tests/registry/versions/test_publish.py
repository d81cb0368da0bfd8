"""Publishing: two processes at once, kills at every step, full disks; always the old state or the new."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tests.registry.artifacts import make_adapter, make_base
from tests.registry.conftest import Publish
from tunery.registry import Base, NewVersion
from tunery.registry.errors import InvalidInput, StorageFailed
from tunery.registry.home import Home
from tunery.registry.registry import Registry

PUBLISHER = """
import json, os, signal, sys
from pathlib import Path
import msgspec
from tunery.registry import Base, NewVersion
from tunery.registry.home import Home
from tunery.registry.registry import Registry

home, folder, base, rounds, die_at = sys.argv[1:]
def watch(step):
    if step == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
numbers = []
with Registry.open(Home(Path(home))) as registry:
    for _ in range(int(rounds)):
        version = registry.publish(NewVersion(adapter="acme/support", folder=Path(folder), base=msgspec.json.decode(base, type=Base),
                                              method="lora", manifest={}, metrics={}, actor="p", alias="production"), watch=watch)
        numbers.append(version.number)
print(json.dumps(numbers))
"""


PERSISTENT = PUBLISHER.replace("    for _ in", "    from tunery.registry.errors import StorageFailed\n    for _ in")
PERSISTENT = PERSISTENT.replace("        version = ", "        try: version = ")
PERSISTENT = PERSISTENT.replace("        numbers.append(version.number)", "        except StorageFailed: pass")


def arguments(home: Home, folder: Path, base: Base, *, rounds: int = 60, die_at: str = "") -> list[str]:
    return [str(home.root), str(folder), msgspec.json.encode(base).decode(), str(rounds), die_at]


def start(home: Home, folder: Path, base: Base, *, rounds: int = 1, die_at: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PUBLISHER, *arguments(home, folder, base, rounds=rounds, die_at=die_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_publishing_at_once_get_different_numbers_and_lose_nothing(
    home: Home, registry: Registry, base: Base, tmp_path: Path
) -> None:
    folders = [make_adapter(tmp_path / f"p{seed}", seed=seed) for seed in range(3)]
    processes = [start(home, folder, base, rounds=15) for folder in folders]
    numbers: list[int] = []
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        numbers += json.loads(output)
    assert sorted(numbers) == list(range(1, 46))
    assert [version.number for version in registry.versions("acme/support")] == sorted(numbers)
    assert len(registry.history("acme/support", "production")) == 45
    assert registry.verify() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        "check",
        "store adapter_config.json",
        "store adapter_model.safetensors",
        "verify",
        "begin",
        "insert",
        "commit",
        "done",
    ],
)
def test_a_publisher_killed_at_any_step_leaves_the_old_state_or_the_new(
    home: Home, registry: Registry, base: Base, publish: Publish, tmp_path: Path, step: str
) -> None:
    publish(seed=1, alias="production")
    killed = start(home, make_adapter(tmp_path / "k", seed=2), base, die_at=step)
    assert killed.wait(timeout=60) == -signal.SIGKILL
    killed.communicate()
    expected = 2 if step == "done" else 1
    assert registry.resolve("acme/support").number == expected
    assert len(registry.versions("acme/support")) == expected
    assert registry.verify() == []
    registry.collect(older_than=-1)
    assert registry.verify() == []
    assert list(home.staging.iterdir()) == []
    assert publish(seed=3, alias="production").number == expected + 1


@pytest.mark.slow
def test_publishers_killed_at_any_moment_leave_whole_versions_only(
    home: Home, registry: Registry, base: Base, publish: Publish, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "k", rank=4000)
    noise = random.Random(7)
    for _ in range(8):
        process = start(home, folder, base, rounds=500)
        # An import takes most of a second; what comes after it is what is to be interrupted.
        grown = len(registry.versions())
        while len(registry.versions()) == grown and process.poll() is None:
            time.sleep(0.01)
        time.sleep(noise.uniform(0, 0.1))
        process.kill()
        process.communicate()
        numbers = [version.number for version in registry.versions("acme/support")]
        assert numbers == list(range(1, len(numbers) + 1))
        assert registry.aliases("acme/support") == {"production": numbers[-1]}
        assert registry.verify() == []
    registry.collect(older_than=-1)
    assert registry.verify() == []
    assert list(home.staging.iterdir()) == []


@pytest.mark.slow
def test_a_collection_beside_publishers_never_takes_what_a_version_needs(
    home: Home, registry: Registry, base: Base, tmp_path: Path
) -> None:
    """The collector takes even the newest loose blob that no publisher holds a lease for."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PERSISTENT, *arguments(home, make_adapter(tmp_path / str(n), seed=n), base)]
        )
        for n in range(2)
    ]
    collections = 0
    while any(process.poll() is None for process in processes):
        registry.collect(older_than=-1)
        collections += 1
        assert registry.verify() == []
        for version in registry.versions():
            registry.remove(version.name, actor="t", force=True)
    assert [process.returncode for process in processes] == [0, 0]
    assert collections > 10
    assert registry.verify() == []


def test_a_folder_that_changes_meanwhile_is_not_published(registry: Registry, base: Base, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")

    def change(step: str) -> None:
        if step == "store adapter_model.safetensors":
            make_adapter(folder, seed=9)

    with pytest.raises(StorageFailed, match="changed while it was being published"):
        registry.publish(
            NewVersion(adapter="a/b", folder=folder, base=base, method="lora", manifest={}, metrics={}, actor="t"),
            watch=change,
        )
    assert registry.versions() == []


def test_a_missing_base_is_named(registry: Registry, base: Base, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    (Path(base.path) / "model.safetensors").unlink()
    with pytest.raises(StorageFailed, match="tunery bases add tiny"):
        registry.publish(
            NewVersion(adapter="a/b", folder=folder, base=base, method="lora", manifest={}, metrics={}, actor="t")
        )


def test_a_file_that_cannot_be_read_is_named(
    registry: Registry, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_adapter(tmp_path / "a")

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("tunery.registry.peft.artifact.read_header", refuse)
    with pytest.raises(StorageFailed, match=r"adapter_model\.safetensors Permission denied"):
        registry.publish(
            NewVersion(adapter="a/b", folder=folder, base=base, method="lora", manifest={}, metrics={}, actor="t")
        )


def test_a_manifest_is_kept_as_it_reads_back(registry: Registry, base: Base, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    metrics = {"eval_loss": 1.5, "perplexity": math.inf, "accuracy": math.nan}
    version = registry.publish(
        NewVersion(
            adapter="a/b",
            folder=folder,
            base=base,
            method="lora",
            manifest={"data": ("x", 1)},
            metrics=metrics,
            actor="t",
        )
    )
    assert version.metrics == {"eval_loss": 1.5}
    assert version.manifest == {"data": ["x", 1], "metrics_not_finite": ["accuracy", "perplexity"]}
    assert registry.version("a/b", 1) == version
    with pytest.raises(InvalidInput, match="manifest"):
        registry.publish(
            NewVersion(
                adapter="a/b", folder=folder, base=base, method="lora", manifest={"x": object()}, metrics={}, actor="t"
            )
        )


@pytest.mark.slow
def test_two_processes_open_a_new_home_at_once(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from tunery.registry.home import Home\n"
    code += "from tunery.registry.registry import Registry\nRegistry.open(Home(Path(sys.argv[1]))).close()"
    for attempt in range(3):
        home = str(tmp_path / str(attempt))
        processes = [subprocess.Popen([sys.executable, "-c", code, home]) for _ in range(3)]
        assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]


@pytest.mark.parametrize("failing", ["fsync", "rename", "commit"])
def test_a_full_disk_changes_nothing(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    publish(seed=1, alias="production")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "fsync":
            patch.setattr("os.fsync", full)
        elif failing == "rename":
            patch.setattr(Path, "rename", full)
        else:
            _limit_database(registry)
        with pytest.raises(StorageFailed, match=r"full|nothing was changed"):
            _publish_many(publish)
    registry._database._engine.dispose()
    numbers = [version.number for version in registry.versions("acme/support")]
    assert registry.resolve("acme/support").number == numbers[-1]
    assert registry.verify() == []


def _publish_many(publish: Publish) -> None:
    for _ in range(400):
        publish(seed=2, alias="production")


def _limit_database(registry: Registry) -> None:
    """Make SQLite itself run out of pages, as on a full disk."""
    with registry._database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 1}")


@pytest.mark.slow
def test_a_really_full_file_system_changes_nothing(registry: Registry, base: Base, tmp_path: Path) -> None:
    """The child may not write files over 64 kB, so that storing the weights fails in the kernel."""
    code = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n" + PUBLISHER
    folder = make_adapter(tmp_path / "big", rank=8000)
    command = [sys.executable, "-c", code, *arguments(registry.home, folder, base, rounds=1)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "StorageFailed: the disk is full: adapter_model.safetensors could not be stored" in done.stderr
    assert registry.versions() == []
    assert list(registry.home.staging.iterdir()) == []


def test_what_is_still_being_written_is_not_collected(home: Home, registry: Registry) -> None:
    for name in ("busy", "left"):
        (home.staging / name).mkdir()
        (home.staging / name / "part").write_bytes(b"x" * 100)
    for path in (home.staging / "left" / "part", home.staging / "left", home.staging / "busy"):
        os.utime(path, (1, 1))
    collected = registry.collect(older_than=3600)
    assert (collected.staged, collected.bytes) == (1, 100)
    assert [path.name for path in home.staging.iterdir()] == ["busy"]


def test_packed_bases_that_are_not_known_are_collected(home: Home, registry: Registry, tmp_path: Path) -> None:
    base = registry.add_base(make_base(tmp_path / "base"))
    assert registry.collect(older_than=-1).packed == 0  # there is no such folder yet
    home.packed.mkdir()
    for name in (f"{base.digest}-nf4-bfloat16-1.safetensors", "0123-nf4-bfloat16-1.safetensors", ".packing-abc"):
        (home.packed / name).write_bytes(b"x" * 100)
    assert registry.collect(older_than=3600).packed == 0
    collected = registry.collect(older_than=-1)
    assert (collected.packed, collected.bytes) == (2, 200)
    assert [path.name[:64] for path in home.packed.iterdir()] == [base.digest]


def test_a_database_damaged_while_open_is_named(home: Home, registry: Registry, publish: Publish) -> None:
    publish(seed=1)
    registry.close()
    with home.database.open("r+b") as file:
        # All pages but the first, which holds the tables' names.
        file.seek(4096)
        file.write(b"\xff" * (home.database.stat().st_size - 4096))
    with pytest.raises(StorageFailed, match=r"registry\.db"), Registry.open(home) as again:
        again.versions()


def test_verify_finds_damage_and_collect_removes_only_what_is_loose(registry: Registry, publish: Publish) -> None:
    kept, gone = publish(seed=1), publish(seed=2)
    registry.remove("acme/support@2", actor="t")
    assert registry.collect(older_than=3600).blobs == 0
    assert registry.collect(older_than=-1, dry_run=True).blobs == 1
    assert registry.collect(older_than=-1).blobs == 1
    assert not registry.files(gone)["adapter_model.safetensors"].exists()
    assert registry.verify() == []
    path = registry.files(kept)["adapter_model.safetensors"]
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert [(p.version, p.path) for p in registry.verify()] == [("acme/support@1", "adapter_model.safetensors")]
    assert "damaged" in registry.verify("acme/support@1")[0].problem
