"""Restoring: everything is as it was, nothing is overwritten, and no backup can do harm."""

from __future__ import annotations

import gzip
import io
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from tests.registry.backup.conftest import killed_at, problems, tree
from tunery.registry import Conflict, InvalidInput, NotFound, StorageFailed, TuneryError
from tunery.registry.backup.backup import back_up
from tunery.registry.backup.manifest import MANIFEST, BackupManifest, Entry, object_name, read_manifest
from tunery.registry.backup.restore import check_backup, restore
from tunery.registry.home import Home
from tunery.registry.registry import Registry


@pytest.fixture
def other(tmp_path: Path) -> Home:
    return Home(tmp_path / "other")


@pytest.fixture
def folder(full: Registry, tmp_path: Path) -> Path:
    back_up(full.home, tmp_path / "folder", now=5.0, checkpoints=True)
    return tmp_path / "folder"


@pytest.mark.parametrize("name", ["b", "b.tar", "b.tar.gz", "b.tgz"])
def test_a_restored_registry_is_the_same(full: Registry, tmp_path: Path, other: Home, name: str) -> None:
    back_up(full.home, tmp_path / name, now=5.0, checkpoints=True)
    done = restore(tmp_path / name, other)
    assert (done.created_at, done.incomplete, done.moved_aside) == (5.0, (), None)
    before, after = tree(full.home), tree(other)
    assert after == {path: data for path, data in before.items() if not path.endswith("/lock")}
    with Registry.open(other) as restored:
        assert restored.versions() == full.versions()
        assert restored.history("acme/support") == full.history("acme/support")
        assert restored.keys.list() == full.keys.list()
        assert restored.bases() == [
            msgspec.structs.replace(base, path=base.path.replace(str(full.home.root), str(other.root)))
            for base in full.bases()
        ]
        assert problems(restored) == []
        assert restored.collect(older_than=0.0).blobs == 0
        # It can be rebuilt from its manifests too.
        assert restored._mirror.manifests.highest() == {"acme/support": 2, "globex/legal": 1}


def test_uploads_whose_parts_were_left_behind_are_over(folder: Path, other: Home) -> None:
    restore(folder, other)
    with closing(sqlite3.connect(other.database)) as database:
        assert database.execute("SELECT DISTINCT status FROM uploads").fetchall() == [("expired",)]


def test_a_home_with_anything_in_it_is_refused_or_moved_aside(full: Registry, folder: Path, other: Home) -> None:
    Registry.open(other).close()
    before = sorted(path.name for path in other.root.rglob("*"))
    with pytest.raises(Conflict, match=r"is not empty \(registry.db, reserve\)|is not empty"):
        restore(folder, other)
    assert "registry.db" in before
    done = restore(folder, other, force=True)
    assert done.moved_aside == str(other.root / "replaced-1")
    assert (other.root / "replaced-1" / "registry.db").is_file()
    with Registry.open(other) as registry:
        assert registry.versions() == full.versions()
        with pytest.raises(Conflict, match="is in use"):
            restore(folder, other, force=True)
    assert restore(folder, other, force=True).moved_aside == str(other.root / "replaced-2")


def test_an_operators_configuration_stays(folder: Path, other: Home) -> None:
    other.ensure()
    (other.root / "config.toml").write_text("mine")
    restore(folder, other)
    assert (other.root / "config.toml").read_text() == "mine"


def test_a_home_that_is_used_meanwhile_is_left_alone(
    folder: Path, other: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunery.registry.backup import restore as module

    real = module._complete

    def complete(manifest: BackupManifest, home: Home) -> None:
        real(manifest, home)
        Registry.open(other).close()

    monkeypatch.setattr(module, "_complete", complete)
    with pytest.raises(Conflict, match="was used by another process"):
        restore(folder, other)
    with Registry.open(other) as registry:
        assert registry.versions() == []
    assert not list(other.root.glob("restoring-*"))


@pytest.mark.parametrize("force", [False, True])
def test_killed_at_any_moment_it_leaves_no_registry_or_a_whole_one(
    full: Registry, folder: Path, other: Home, force: bool
) -> None:
    if force:
        with Registry.open(other) as registry:
            registry.keys.create(tenant="old", scopes=("infer",), actor="test")
    step = 1
    while killed_at(step := step + 9, lambda: restore(folder, other, force=force)):
        if other.database.exists():
            with closing(sqlite3.connect(other.database)) as database:
                count = database.execute("SELECT count(*) FROM versions").fetchone()[0]
                keys = database.execute("SELECT tenant FROM api_keys").fetchall()
            if count:
                break
            assert (force, keys) == (True, [("old",)])
    assert step > 10
    if not other.database.exists():
        restore(folder, other, force=force)
    with Registry.open(other) as registry:
        assert (registry.versions(), problems(registry)) == (full.versions(), [])
    if force:
        with Registry.open(Home(other.root / "replaced-1")) as registry:
            assert [key.tenant for key in registry.keys.list()] == ["old"]


# -- backups that are damaged or hostile -------------------------------------------------------------------------------


def refused(source: Path, home: Home, error: type[TuneryError] = InvalidInput) -> TuneryError:
    """The error of restoring a backup, after which there is nothing in the home."""
    with pytest.raises(error) as failed:
        restore(source, home)
    assert not home.root.exists()
    with pytest.raises(error):
        check_backup(source)
    return failed.value


def change(folder: Path, edit: Callable[[BackupManifest], BackupManifest]) -> None:
    path = folder / MANIFEST
    path.write_bytes(msgspec.json.encode(edit(read_manifest(path.read_bytes()))))


@pytest.mark.parametrize(
    "path",
    [
        "../evil", "/etc/passwd", "jobs/../../evil/x", "jobs/a/./b", "blobs/aa/../../x", "registry.db-wal", "keys/x/y",
        "bases/../x", "jobs/a\x00/b", "jobs//b", "reserve", "jobs/a", f"blobs/ab/{'c' * 64}", "jobs/" + "/".join("a" * 99),
        f"blobs/{'b' * 2}/{'b' * 64}",
    ],
)  # fmt: skip
def test_paths_that_no_backup_holds_are_refused(folder: Path, other: Home, path: str) -> None:
    def edit(manifest: BackupManifest) -> BackupManifest:
        extra = msgspec.structs.replace(manifest.entries[-1], path=path)
        return msgspec.structs.replace(manifest, entries=(*manifest.entries, extra))

    change(folder, edit)
    assert refused(folder, other).code == "backup_refused"


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[" * 100_000, b'{"format": "1"}', b"\xff", b'{"format": 1, "entries": null}']
)
def test_manifests_that_cannot_be_read_are_refused(folder: Path, other: Home, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    assert refused(folder, other).code == "backup_refused"


def test_a_newer_backup_is_refused_in_words(folder: Path, other: Home) -> None:
    change(folder, lambda manifest: msgspec.structs.replace(manifest, revision="9999"))
    assert "upgrade Tunery" in refused(folder, other).message
    (folder / MANIFEST).write_bytes(b'{"format": 2, "tunery": "7.0", "unknown": []}')
    error = refused(folder, other)
    assert (error.code, "newer Tunery (7.0; format 2)" in error.message) == ("backup_too_new", True)


def test_no_backup_is_said_to_be_none(other: Home, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello " * 1000)
    refused(tmp_path / "nowhere", other, NotFound)
    refused(tmp_path / "empty", other, NotFound)
    assert refused(tmp_path / "text", other).code == "backup_refused"


def test_damage_is_found_before_anything_is_in_place(folder: Path, other: Home) -> None:
    for path in sorted((folder / "objects").glob("*/*"))[::3]:
        data = path.read_bytes()
        for bad in (data[:-1], data + b"x", bytes([data[0] ^ 1]) + data[1:], None):
            path.unlink(missing_ok=True)
            if bad is not None:
                path.write_bytes(bad)
            assert refused(folder, other, StorageFailed).code == "backup_damaged"
            path.unlink(missing_ok=True)
        path.symlink_to("/etc/hostname")
        assert refused(folder, other, StorageFailed).code == "backup_damaged"
        path.unlink()
        path.write_bytes(data)
    assert check_backup(folder).files


def test_a_database_whose_files_the_backup_lacks_is_refused(folder: Path, other: Home) -> None:
    def edit(manifest: BackupManifest) -> BackupManifest:
        kept = tuple(entry for entry in manifest.entries if not entry.path.startswith("blobs/"))
        return msgspec.structs.replace(manifest, entries=kept)

    change(folder, edit)
    with pytest.raises(StorageFailed, match="its database names"):
        restore(folder, other)
    assert not other.root.exists()


def test_more_than_the_disk_holds_is_refused_at_once(folder: Path, other: Home) -> None:
    def edit(manifest: BackupManifest) -> BackupManifest:
        huge = Entry(f"bases/{'c' * 64}/huge", "c" * 64, 2**62)
        return msgspec.structs.replace(manifest, entries=(*manifest.entries, huge))

    change(folder, edit)
    with pytest.raises(StorageFailed, match="has room for") as failed:
        restore(folder, other)
    assert failed.value.code == "disk_full"
    assert not other.root.exists()


def archive(
    folder: Path, path: Path, edit: Callable[[tarfile.TarInfo], tarfile.TarInfo], *, gzipped: bool = False
) -> None:
    """The backup as an archive that somebody else has made; `edit` changes its second member."""
    manifest = read_manifest((folder / MANIFEST).read_bytes())
    names = [MANIFEST, *map(object_name, manifest.objects)]
    kept = tarfile.GNU_FORMAT
    with tarfile.open(path, "w:gz", format=kept) if gzipped else tarfile.open(path, "w", format=kept) as made:
        for number, name in enumerate(names):
            data = (folder / name).read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(edit(info) if number == 1 else info, io.BytesIO(data))


def renamed(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.name = "../" * 3 + "evil"
    return info


def link(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0
    return info


def device(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.type, info.size = tarfile.CHRTYPE, 0
    return info


def long_name(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.name = "x" * 5000
    return info


@pytest.mark.parametrize("edit", [renamed, link, device, long_name])
def test_archives_hold_plain_files_as_announced_and_nothing_else(
    folder: Path, other: Home, tmp_path: Path, edit: Callable[[tarfile.TarInfo], tarfile.TarInfo]
) -> None:
    archive(folder, tmp_path / "same.tar", lambda info: info)
    assert check_backup(tmp_path / "same.tar").files
    archive(folder, tmp_path / "evil.tar", edit)
    assert refused(tmp_path / "evil.tar", other).code == "backup_refused"
    assert not (tmp_path / "evil").exists()


def test_extended_headers_are_refused_before_they_are_read(folder: Path, other: Home, tmp_path: Path) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 2**40
    (tmp_path / "evil.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    assert refused(tmp_path / "evil.tar", other).code == "backup_refused"


def test_a_manifest_that_unpacks_without_end_is_refused(other: Home, tmp_path: Path) -> None:
    info = tarfile.TarInfo(MANIFEST)
    info.size = 2**33
    with gzip.open(tmp_path / "bomb.tar.gz", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**20))
    assert refused(tmp_path / "bomb.tar.gz", other).code == "backup_refused"


@pytest.mark.parametrize("gzipped", [False, True])
def test_an_archive_that_is_cut_short_or_damaged_is_refused(
    folder: Path, other: Home, tmp_path: Path, gzipped: bool
) -> None:
    whole = tmp_path / "whole"
    archive(folder, whole, lambda info: info, gzipped=gzipped)
    data = whole.read_bytes()
    for cut in (0, 1, 600, len(data) // 2):
        (tmp_path / "cut").write_bytes(data[:cut])
        refused(tmp_path / "cut", other, TuneryError)
    spoiled = bytearray(data)
    spoiled[len(data) // 2] ^= 0xFF
    (tmp_path / "cut").write_bytes(spoiled)
    refused(tmp_path / "cut", other, TuneryError)
    shutil.rmtree(other.root, ignore_errors=True)
