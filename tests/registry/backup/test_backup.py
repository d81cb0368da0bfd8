"""Backups while others work: consistent, incremental, whole or not there."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import tarfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.registry.artifacts import make_adapter
from tests.registry.backup.conftest import FORK, killed_at, problems
from tests.registry.conftest import Publish
from tests.small_disk import fill_disk, mounted_disk
from tunery.registry import Base, Conflict, InvalidInput, NewVersion, NotFound, StorageFailed
from tunery.registry.backup.backup import BackedUp, back_up
from tunery.registry.backup.manifest import MANIFEST, read_manifest
from tunery.registry.backup.restore import check_backup, restore
from tunery.registry.home import Home
from tunery.registry.registry import Registry
from tunery.registry.storage import leases


def save(registry: Registry, target: Path, *, checkpoints: bool = False) -> BackedUp:
    return back_up(registry.home, target, now=5.0, checkpoints=checkpoints)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def paths(folder: Path) -> set[str]:
    return {entry.path for entry in read_manifest((folder / MANIFEST).read_bytes()).entries}


def test_a_backup_has_what_cannot_be_made_again(full: Registry, tmp_path: Path) -> None:
    done = save(full, tmp_path / "b")
    names = paths(tmp_path / "b")
    job = {name for name in names if name.startswith("jobs/")}
    assert job == {"jobs/job-1/metrics.jsonl"}
    assert {"registry.db", "config.toml", f"bases/{'b' * 64}/model.safetensors"} <= names
    assert len([name for name in names if name.startswith("blobs/")]) == 5
    assert not any("packed" in name or "staging" in name for name in names)
    assert (done.files, done.incomplete, done.outside) == (len(names), (), ())
    save(full, tmp_path / "b", checkpoints=True)
    job = {name for name in paths(tmp_path / "b") if name.startswith("jobs/")}
    assert job == {"jobs/job-1/metrics.jsonl", "jobs/job-1/checkpoint/state.safetensors"}
    assert not list(full.home.staging.iterdir())


def test_a_backup_can_be_read_by_its_owner_alone(full: Registry, tmp_path: Path) -> None:
    save(full, tmp_path / "b.tar")
    save(full, tmp_path / "b")
    assert stat.S_IMODE((tmp_path / "b.tar").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o700


def test_tar_itself_can_read_the_archive(full: Registry, tmp_path: Path) -> None:
    save(full, tmp_path / "b.tar.gz")
    with tarfile.open(tmp_path / "b.tar.gz") as archive:
        assert archive.getnames()[0] == MANIFEST
        assert all(member.isfile() for member in archive)


def test_the_same_folder_gets_only_what_is_new_and_forgets_what_is_gone(
    full: Registry, publish: Publish, tmp_path: Path
) -> None:
    first = save(full, tmp_path / "b")
    assert save(full, tmp_path / "b").files_written == 0
    publish("acme/support", seed=7)
    full.remove("acme/support@2", actor="test")
    # The weights are new, the configuration is not; the database always is.
    assert save(full, tmp_path / "b").files_written == 2
    assert first.files_written == len(list((tmp_path / "b" / "objects").glob("*/*")))
    assert check_backup(tmp_path / "b").files == first.files


@pytest.mark.parametrize("name", ["b", "b.tar"])
def test_damaged_and_missing_files_are_named_and_the_rest_is_backed_up(
    full: Registry, tmp_path: Path, name: str
) -> None:
    weights = full.files(full.resolve("acme/support@1"))["adapter_model.safetensors"]
    weights.write_bytes(b"x" * weights.stat().st_size)
    full.files(full.resolve("globex/legal@1"))["adapter_model.safetensors"].unlink()
    done = save(full, tmp_path / name)
    assert len(done.incomplete) == 2
    assert any(f"blobs/{weights.name[:2]}/{weights.name} is damaged" in text for text in done.incomplete)
    assert "globex/legal@1: adapter_model.safetensors is missing" in done.incomplete
    assert restore(tmp_path / name, Home(tmp_path / "other")).incomplete == done.incomplete
    with Registry.open(Home(tmp_path / "other")) as registry:
        assert {problem.version for problem in problems(registry)} == {"acme/support@1", "globex/legal@1"}


def test_files_whose_names_no_backup_holds_are_named_and_left_out(full: Registry, tmp_path: Path) -> None:
    report = full.home.jobs / "job-1" / "report"
    (report / "/".join("deep" for _ in range(9))).mkdir(parents=True)
    (report / "/".join("deep" for _ in range(9)) / "file").write_text("deep")
    (report / "two\nlines").write_text("lines")
    (report / os.fsdecode(b"\xff")).write_text("bytes")
    (report / "figures.json").write_text("{}")
    (report / "link").symlink_to("/etc/hostname")
    done = save(full, tmp_path / "b.tar")
    assert len(done.incomplete) == 3
    assert all("has a name that no backup holds" in text for text in done.incomplete)
    restore(tmp_path / "b.tar", Home(tmp_path / "other"))
    assert [path.name for path in (tmp_path / "other" / "jobs" / "job-1" / "report").iterdir()] == ["figures.json"]


def test_nothing_is_overwritten(full: Registry, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, error in (
        ("b.tar", Conflict),
        ("full", Conflict),
        ("file", InvalidInput),
        ("no/where.tar", InvalidInput),
    ):
        with pytest.raises(error):
            save(full, tmp_path / name)
    with pytest.raises(InvalidInput, match="inside"):
        save(full, full.home.root / "backup")
    assert (tmp_path / "b.tar").read_text() == (tmp_path / "full" / "letter").read_text() == "mine"


def test_a_folder_belongs_to_one_registry_and_one_backup_at_a_time(full: Registry, tmp_path: Path) -> None:
    save(full, tmp_path / "b")
    with Registry.open(Home(tmp_path / "other")) as other, pytest.raises(Conflict, match="another registry"):
        save(other, tmp_path / "b")
    with leases.exclusive(tmp_path / "b", wait=False), pytest.raises(Conflict, match="another backup"):
        save(full, tmp_path / "b")


def test_no_home_is_made_and_a_damaged_database_is_not_backed_up(full: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="check TUNERY_HOME"):
        back_up(Home(tmp_path / "nowhere"), tmp_path / "b", now=0.0)
    assert not (tmp_path / "nowhere").exists()
    save(full, tmp_path / "b")
    full.close()
    size = full.home.database.stat().st_size
    full.home.database.write_bytes(full.home.database.read_bytes()[:4096] + b"x" * (size - 4096))
    with pytest.raises(StorageFailed, match="is damaged"):
        save(full, tmp_path / "b")
    assert check_backup(tmp_path / "b").files


def test_an_older_database_is_backed_up_as_it_is(full: Registry, tmp_path: Path) -> None:
    full.close()
    with closing(sqlite3.connect(full.home.database)) as database, database:
        database.execute("DROP TABLE audit_log")
        database.execute("DROP TABLE adapter_shares")
        database.execute("UPDATE alembic_version SET version_num = '0012'")
    save(full, tmp_path / "b")
    assert read_manifest((tmp_path / "b" / MANIFEST).read_bytes()).revision == "0012"
    with closing(sqlite3.connect(full.home.database)) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchone() == ("0012",)
    restore(tmp_path / "b", Home(tmp_path / "other"))
    with Registry.open(Home(tmp_path / "other")) as registry:
        assert registry.sharing.all() == []
        assert problems(registry) == []


@pytest.mark.parametrize("name", ["b", "b.tar"])
def test_a_full_disk_leaves_the_old_backup_or_none(full: Registry, tmp_path: Path, name: str) -> None:
    with mounted_disk(tmp_path / "disk", "2m") as disk:
        place = disk / "folder"
        place.mkdir()
        if name == "b":
            save(full, place / name)
        before = files(disk)
        (full.home.root / "config.toml").write_text("# longer\n" * 9000)
        filler = fill_disk(disk)
        with pytest.raises(StorageFailed, match="the disk is full") as failed:
            save(full, place / name)
        assert failed.value.code == "disk_full"
        filler.unlink()
        assert files(disk) == before
        save(full, place / name)
        assert check_backup(place / name).files


def test_a_registry_on_a_disk_that_became_read_only_is_backed_up(full: Registry, tmp_path: Path) -> None:
    full.keys.create(tenant="acme", scopes=("infer",), actor="test")
    with mounted_disk(tmp_path / "disk", "20m") as disk:
        # With its log, which has the last commits.
        shutil.copytree(full.home.root, disk / "home")
        assert (disk / "home" / "registry.db-wal").stat().st_size
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        back_up(Home(disk / "home"), tmp_path / "b.tar", now=5.0)
    restore(tmp_path / "b.tar", Home(tmp_path / "other"))
    with Registry.open(Home(tmp_path / "other")) as registry:
        assert registry.keys.list() == full.keys.list()
        assert problems(registry) == []


@pytest.mark.parametrize("name", ["b", "b.tar"])
def test_killed_at_any_moment_it_leaves_the_old_backup_or_none(
    full: Registry, publish: Publish, tmp_path: Path, name: str
) -> None:
    target, step = tmp_path / name, -2
    if name == "b":
        save(full, target)
        for seed in range(3):
            publish("acme/support", seed=100 + seed)
    while killed_at(step := step + 3, lambda: save(full, target)):
        if name == "b" or target.exists():
            assert check_backup(target).files
            if name != "b":
                break
    assert step > 1
    if name == "b":
        save(full, target)
        assert {path.name for path in (target / "objects").glob("*/*")} == set(
            read_manifest((target / MANIFEST).read_bytes()).objects
        )
    assert not list(tmp_path.glob("*.partial"))


def test_backups_under_traffic_are_consistent(full: Registry, base: Base, tmp_path: Path) -> None:
    """One process publishes, removes and moves aliases without end, another collects, and each backup is whole."""
    folders = [make_adapter(tmp_path / f"traffic-{seed}", seed=50 + seed) for seed in range(4)]

    def publish() -> None:
        with Registry.open(full.home) as registry:
            for number in range(10_000):
                new = NewVersion(
                    adapter="acme/busy", folder=folders[number % 4], base=base, method="lora", manifest={}, metrics={},
                    actor="test", alias="production",
                )  # fmt: skip
                version = registry.publish(new)
                if version.number > 2:
                    registry.remove(f"acme/busy@{version.number - 2}", actor="test", force=True)

    def collect() -> None:
        with Registry.open(full.home) as registry:
            while True:
                registry.collect(older_than=0.0)

    processes = [FORK.Process(target=work, daemon=True) for work in (publish, collect)]
    for process in processes:
        process.start()
    try:
        deadline = time.monotonic() + 60
        while not full.versions("acme/busy"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for number in range(4):
            target = tmp_path / ("b" if number % 2 else f"b{number}.tar")
            assert save(full, target).incomplete == ()
            home = Home(tmp_path / f"restored-{number}")
            restore(target, home)
            with Registry.open(home) as registry:
                assert problems(registry) == []
                assert registry.aliases("acme/busy")["production"] == registry.versions("acme/busy")[-1].number
                assert [move.after for move in registry.history("acme/busy")][-1] == registry.aliases("acme/busy")[
                    "production"
                ]
        assert all(process.is_alive() for process in processes)
    finally:
        for process in processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
