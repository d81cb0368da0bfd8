"""A lost, emptied, damaged, outdated or foreign database: no blob is lost, and the manifests restore the rest."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.registry.artifacts import make_adapter, make_base
from tests.registry.conftest import Publish
from tests.registry.older_databases import before_identity
from tests.registry.versions.test_publish import start
from tunery.registry import Base, NewVersion
from tunery.registry.errors import Conflict, NotFound, StorageFailed
from tunery.registry.home import Home
from tunery.registry.registry import Registry
from tunery.registry.storage.database import Database
from tunery.registry.versions.rebuild import rebuild


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.glob("??/*")}


def lose(home: Home) -> None:
    for path in home.root.glob("registry.db*"):
        path.unlink()


def fill(registry: Registry, publish: Publish) -> None:
    """Three versions of one adapter, one of another, one removed, and aliases that went to and fro."""
    for seed in (1, 2, 3):
        publish(seed=seed, alias="production")
    publish("globex/tickets", seed=4, alias="canary")
    publish("globex/tickets", seed=5)
    registry.rollback("acme/support", actor="ops")
    registry.move_alias("acme/support", "canary", 3, actor="ops", reason="try it")
    registry.remove("globex/tickets@2", actor="ops")


def state(registry: Registry) -> object:
    """Everything that a rebuild brings back."""
    adapters = registry.adapters()
    return (
        registry.versions(),
        registry.bases(),
        {name: (registry.aliases(name), registry.history(name)) for name in adapters},
        [registry.resolve(name) for name in adapters],
    )


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def without_tables(path: Path) -> None:
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    database.close()


@pytest.mark.slow
@pytest.mark.parametrize("damage", [remove, empty, without_tables])
def test_a_lost_database_is_not_made_anew_over_blobs_and_comes_back_from_the_manifests(
    home: Home, registry: Registry, publish: Publish, damage: Callable[[Path], None]
) -> None:
    fill(registry, publish)
    before, blobs = state(registry), files_of(home.blobs)
    registry.close()
    lose(home)
    home.database.touch()
    damage(home.database)
    for _ in range(2):
        with pytest.raises(StorageFailed, match="tunery registry rebuild") as caught:
            Registry.open(home)
        assert caught.value.code == "registry_lost"
    assert files_of(home.blobs) == blobs
    done = rebuild(home)
    assert (done.versions, done.bases, done.unreadable, done.unfinished) == (4, 1, [], [])
    with Registry.open(home) as again:
        assert state(again) == before
        assert again.collect(older_than=-1).blobs == 1  # the removed version's own
        assert again.verify() == []
        again.rollback("acme/support", actor="ops")
        assert again.aliases("acme/support")["production"] == 1


def test_numbers_of_removed_versions_stay_taken_after_a_rebuild(
    home: Home, registry: Registry, publish: Publish
) -> None:
    fill(registry, publish)
    registry.close()
    lose(home)
    rebuild(home)
    with Registry.open(home) as again:
        version = again.publish(
            NewVersion(
                adapter="globex/tickets",
                folder=make_adapter(home.root.parent / "n", seed=8),
                base=again.bases()[0],
                method="lora",
                manifest={},
                metrics={},
                actor="t",
            )
        )
        assert version.number == 3


def test_rebuilding_what_is_whole_changes_nothing(home: Home, registry: Registry, publish: Publish) -> None:
    fill(registry, publish)
    before = state(registry)
    done = rebuild(home)
    assert (done.versions, done.bases, done.moves, done.moved_aside) == (0, 0, 0, None)
    assert state(registry) == before


def test_a_damaged_database_is_moved_aside_and_made_again(home: Home, registry: Registry, publish: Publish) -> None:
    fill(registry, publish)
    before = state(registry)
    registry.close()
    for content in (b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 8176):
        home.database.write_bytes(content)
        done = rebuild(home)
        assert done.moved_aside is not None
        assert Path(done.moved_aside).read_bytes() == content
        with Registry.open(home) as again:
            assert state(again) == before
            again.close()


def test_a_backup_older_than_the_blobs_collects_nothing_and_is_brought_up_to_date(
    home: Home, registry: Registry, base: Base, publish: Publish, tmp_path: Path
) -> None:
    publish(seed=1, alias="production")
    registry.close()
    shutil.copyfile(home.database, tmp_path / "backup")
    with Registry.open(home) as later:
        for seed in (2, 3):
            folder = make_adapter(tmp_path / f"later-{seed}", seed=seed)
            later.publish(
                NewVersion(
                    adapter="acme/support",
                    folder=folder,
                    base=base,
                    method="lora",
                    manifest={},
                    metrics={},
                    actor="t",
                    alias="production",
                )
            )
        before = state(later)
    lose(home)
    shutil.copyfile(tmp_path / "backup", home.database)
    blobs = files_of(home.blobs)
    with Registry.open(home) as old:
        with pytest.raises(StorageFailed, match=r"acme/support@2, acme/support@3.*rebuild") as caught:
            old.collect(older_than=-1)
        assert caught.value.code == "registry_behind"
        with pytest.raises(StorageFailed, match=r"acme/support@2"):
            old.publish(
                NewVersion(
                    adapter="acme/support", folder=folder, base=base, method="lora", manifest={}, metrics={}, actor="t"
                )
            )
        assert files_of(home.blobs) == blobs
    assert rebuild(home).versions == 2
    with Registry.open(home) as again:
        assert state(again) == before
        assert again.collect(older_than=-1).blobs == 0


def test_blobs_of_another_home_are_neither_collected_nor_added_to(
    home: Home, registry: Registry, base: Base, publish: Publish, tmp_path: Path
) -> None:
    publish(seed=1)
    registry.close()
    other = Home(tmp_path / "other")
    with Registry.open(other) as theirs:
        theirs.add_base(make_base(tmp_path / "base"))
    shutil.rmtree(other.blobs)
    shutil.copytree(home.blobs, other.blobs)
    blobs = files_of(other.blobs)
    with Registry.open(other) as mixed:
        for change in (
            lambda: mixed.collect(older_than=-1),
            lambda: mixed.publish(
                NewVersion(
                    adapter="a/b",
                    folder=make_adapter(tmp_path / "x"),
                    base=base,
                    method="lora",
                    manifest={},
                    metrics={},
                    actor="t",
                )
            ),
        ):
            with pytest.raises(StorageFailed, match="belongs to") as caught:
                change()
            assert caught.value.code == "registry_mismatch"
    assert files_of(other.blobs) == blobs
    with pytest.raises(Conflict, match=r"move registry\.db away"):
        rebuild(other)


def test_an_empty_mount_in_place_of_the_blobs_takes_nothing_in(
    home: Home, registry: Registry, base: Base, publish: Publish, tmp_path: Path
) -> None:
    publish(seed=1)
    home.blobs.rename(tmp_path / "unmounted")
    home.blobs.mkdir()
    with pytest.raises(StorageFailed, match="right volume is mounted"):
        publish(seed=2)
    with pytest.raises(StorageFailed, match="right volume is mounted"):
        registry.collect(older_than=-1)
    home.blobs.rmdir()
    (tmp_path / "unmounted").rename(home.blobs)
    assert publish(seed=2).number == 2


def test_a_database_that_an_earlier_release_made_anew_collects_nothing(
    home: Home, registry: Registry, publish: Publish
) -> None:
    publish(seed=1)
    registry.close()
    shutil.rmtree(home.manifests)
    with sqlite3.connect(home.database) as database:
        for table in ("files", "version_data", "aliases", "alias_moves", "versions", "adapters", "bases", "identity"):
            database.execute(f"DELETE FROM {table}")
    database.close()
    blobs = files_of(home.blobs)
    with Registry.open(home) as again, pytest.raises(StorageFailed, match="backup"):
        again.collect(older_than=-1)
    assert files_of(home.blobs) == blobs
    lose(home)
    with pytest.raises(NotFound, match="no manifests"):
        rebuild(home)
    assert not home.database.exists()


def test_versions_from_before_manifests_get_theirs_when_the_registry_is_opened(
    home: Home, registry: Registry, publish: Publish
) -> None:
    fill(registry, publish)
    before = state(registry)
    registry.close()
    shutil.rmtree(home.manifests)
    before_identity(home.database)
    Registry.open(home).close()
    lose(home)
    rebuild(home)
    with Registry.open(home) as again:
        assert state(again) == before


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b'{"adapter": "acme/sup', b"\0" * 300, b"{}"])
def test_a_manifest_that_cannot_be_read_is_named_and_its_files_stay(
    home: Home, registry: Registry, publish: Publish, content: bytes
) -> None:
    fill(registry, publish)
    registry.close()
    lose(home)
    manifest = home.manifests / "versions" / "acme" / "support" / "3.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(content)
    blobs = files_of(home.blobs)
    done = rebuild(home)
    assert (done.versions, done.unreadable) == (3, ["acme/support@3"])
    with Registry.open(home) as again:
        assert [version.number for version in again.versions("acme/support")] == [1, 2]
        with pytest.raises(StorageFailed, match="acme/support@3"):
            again.collect(older_than=-1)
    assert files_of(home.blobs) == blobs
    manifest.write_bytes(whole)
    assert rebuild(home).versions == 1
    with Registry.open(home) as again:
        assert again.aliases("acme/support") == {"production": 2, "canary": 3}
        assert again.verify() == []


def test_a_database_removed_while_it_is_open_takes_no_more_writes(
    home: Home, registry: Registry, publish: Publish
) -> None:
    publish(seed=1)
    lose(home)
    with pytest.raises(StorageFailed, match="removed or replaced") as caught:
        publish(seed=2)
    assert caught.value.code == "registry_replaced"
    rebuild(home)
    with pytest.raises(StorageFailed, match="removed or replaced"):
        registry.collect(older_than=-1)
    with Registry.open(home) as again:
        assert [version.number for version in again.versions()] == [1]


def test_a_database_that_cannot_be_opened_any_more_is_a_named_failure(home: Home, registry: Registry) -> None:
    registry.close()
    with closing(Database(home.database)) as database:
        lose(home)
        home.database.mkdir()
        # Nobody has used the pool yet, so both would open the file again.
        with pytest.raises(StorageFailed, match=r"registry\.db was removed or replaced"), database.read():
            pass
        with pytest.raises(StorageFailed, match=r"registry\.db was removed or replaced"), database.write():
            pass


@pytest.mark.slow
@pytest.mark.parametrize(("step", "expected"), [("staged", 1), ("settle", 2), ("done", 2)])
def test_a_publisher_killed_around_its_commit_loses_no_version_with_the_database(
    home: Home, registry: Registry, base: Base, publish: Publish, tmp_path: Path, step: str, expected: int
) -> None:
    publish(seed=1, alias="production")
    killed = start(home, make_adapter(tmp_path / "k", seed=2), base, die_at=step)
    assert killed.wait(timeout=60) == -signal.SIGKILL
    killed.communicate()
    assert len(registry.versions()) == expected
    registry.close()
    shutil.copytree(home.root, tmp_path / "copy")
    with Registry.open(home) as again:
        again.collect(older_than=-1)
        assert len(again.versions()) == expected
        assert again.verify() == []
    copy = Home(tmp_path / "copy")
    lose(copy)
    done = rebuild(copy)
    # What was on the point of being published is taken in too, and said so: all of its files are there.
    assert (done.versions, done.unfinished) == (2, [] if step == "done" else ["acme/support@2"])


@pytest.mark.slow
def test_a_collection_beside_a_rebuild_takes_nothing_that_is_needed(
    home: Home, registry: Registry, publish: Publish
) -> None:
    for seed in range(12):
        publish(seed=seed)
    before = registry.versions()
    registry.close()
    collecting = f"""
import sys
from pathlib import Path
from tunery.registry.errors import StorageFailed
from tunery.registry.home import Home
from tunery.registry.registry import Registry
for _ in range(40):
    try:
        with Registry.open(Home(Path({str(home.root)!r}))) as registry:
            registry.collect(older_than=-1)
    except StorageFailed:
        pass
"""
    collector = subprocess.Popen([sys.executable, "-c", collecting])
    while collector.poll() is None:
        lose(home)
        # A database that is taken away while others have it open may fail under them; it is said,
        # and nothing is lost by it.
        with suppress(StorageFailed):
            rebuild(home)
    assert collector.returncode == 0
    lose(home)
    rebuild(home)
    with Registry.open(home) as again:
        assert again.versions() == before
        assert again.verify() == []


@pytest.mark.slow
def test_the_command_says_what_it_took_in(home: Home, registry: Registry, publish: Publish) -> None:
    fill(registry, publish)
    registry.close()
    lose(home)

    def tunery(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"TUNERY_HOME": str(home.root)}
        command = [sys.executable, "-m", "tunery.gateway.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    refused = tunery("adapters", "gc", "--older-than", "0")
    assert refused.returncode == 7
    assert "tunery registry rebuild" in refused.stderr
    done = tunery("registry", "rebuild")
    assert done.returncode == 0, done.stderr
    assert "took in 4 versions, 1 bases and" in done.stdout
    assert "acme/support@2" in tunery("adapters", "list").stdout
