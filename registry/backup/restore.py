"""Restore a backup into an empty home: everything is unpacked and verified beside the place where it goes, and the
database, which makes a folder a registry, is put in place last."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
from sqlalchemy import Connection, select, update

from tunery.registry.backup.files import chunks_of, failing, write_new
from tunery.registry.backup.manifest import BackupManifest
from tunery.registry.backup.placement import Placement
from tunery.registry.backup.source import BackupSource, open_source
from tunery.registry.errors import StorageFailed, some_of
from tunery.registry.home import Home
from tunery.registry.storage import schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import Database
from tunery.registry.storage.manifests import Manifests
from tunery.registry.storage.mirror import Mirror
from tunery.registry.versions.upkeep import needed_blobs

__all__ = ["Restored", "check_backup", "restore"]


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What was restored, or checked: files and bytes, when the backup was made, and what it lacked.

    `moved_aside` is the folder in which what was in the home before is now.
    """

    files: int
    bytes: int
    created_at: float
    incomplete: tuple[str, ...]
    outside: tuple[str, ...]
    moved_aside: str | None = None


def check_backup(path: Path) -> Restored:
    """Read a whole backup and compare it with its digests; raise as `restore` does."""
    with open_source(path) as source:
        objects = source.manifest.objects
        for sha256, chunks in _reading(source):
            digest, size = hashlib.sha256(), 0
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
            if (digest.hexdigest(), size) != (sha256, objects[sha256].size):
                raise _damaged(f"{objects[sha256].path} does not match its digest")
        return _restored(source.manifest, None)


def restore(path: Path, home: Home, *, force: bool = False) -> Restored:
    """Put a backup into `home`, with its database brought up to date.

    A home that is not empty is refused, or with `force` moved into a folder of its own. Raise NotFound for no backup,
    InvalidInput (backup_too_new, backup_refused), StorageFailed (backup_damaged, disk_full) and Conflict
    (home_not_empty, home_in_use); nothing is changed then.
    """
    with (
        open_source(path) as source,
        failing(home.root, "restored", full="its disk is full"),
        Placement.open(home.root, force=force) as placement,
    ):
        _require_room(source.manifest, home.root)
        _unpack(source, placement.staging)
        _complete(source.manifest, Home(placement.staging))
        aside = placement.place()
    return _restored(source.manifest, aside)


def _restored(manifest: BackupManifest, aside: Path | None) -> Restored:
    return Restored(
        files=len(manifest.entries),
        bytes=manifest.size,
        created_at=manifest.created_at,
        incomplete=tuple(manifest.incomplete.values()),
        outside=manifest.outside,
        moved_aside=None if aside is None else str(aside),
    )


# -- unpacking ---------------------------------------------------------------------------------------------------------


def _require_room(manifest: BackupManifest, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if manifest.size > free:
        raise StorageFailed(
            f"the backup has {manifest.size / 1e9:.2f} GB, and the disk of {folder} has room for {free / 1e9:.2f} GB; "
            "nothing was changed",
            code="disk_full",
        )


def _reading(source: BackupSource) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The objects of a backup; a disk that cannot be read is the backup's, not the home's."""
    for sha256, chunks in source.objects():
        yield sha256, _readable(chunks)


def _readable(chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from chunks
    except OSError as error:
        raise _damaged(f"it cannot be read ({error.strerror})") from error


def _unpack(source: BackupSource, staging: Path) -> None:
    """Write each object to every path that has its content, and compare it with its digest."""
    places: dict[str, list[Path]] = {}
    for entry in source.manifest.entries:
        places.setdefault(entry.sha256, []).append(staging / entry.path)
    objects = source.manifest.objects
    for sha256, chunks in _reading(source):
        first, *others = places[sha256]
        entry = objects[sha256]
        if write_new(first, chunks, limit=entry.size) != (sha256, entry.size):
            raise _damaged(f"{entry.path} does not match its digest")
        for path in others:
            write_new(path, chunks_of(first, entry.size), limit=entry.size)


def _damaged(why: str) -> StorageFailed:
    return StorageFailed(
        f"the backup is damaged: {why}; nothing was changed: use another backup", code="backup_damaged"
    )


# -- the database ------------------------------------------------------------------------------------------------------


def _complete(manifest: BackupManifest, home: Home) -> None:
    """Bring the database up to date, check that it is whole, and write the manifests beside the blobs."""
    for folder in (home.blobs, home.staging):
        folder.mkdir(exist_ok=True)
    manifests, blobs = Manifests(home.manifests), BlobStore(home.blobs, home.staging)
    with contextlib.closing(Database(home.database)) as database:
        mirror = Mirror(database, manifests, blobs)
        mirror.initialise()
        with database.write() as connection:
            _check(connection, manifest, home)
            # Their parts are not in a backup.
            pending = schema.uploads.c.status == "pending"
            connection.execute(update(schema.uploads).where(pending).values(status="expired"))
            manifests.claim(connection.scalars(select(schema.identity.c.id)).one())
            mirror.sync(connection)
    with contextlib.closing(sqlite3.connect(home.database)) as plain:
        # One file without a log beside it, until somebody opens it.
        plain.execute("PRAGMA journal_mode=DELETE")
    shutil.rmtree(home.staging)


def _check(connection: Connection, manifest: BackupManifest, home: Home) -> None:
    found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if found != "ok":
        raise _damaged(f"its database is ({found})")
    held = {entry.sha256 for entry in manifest.entries if entry.path.startswith("blobs/")} | manifest.incomplete.keys()
    lacking = sorted(needed_blobs(connection) - held)
    if lacking:
        raise _damaged(f"its database names {some_of(lacking, 2)}, which it does not hold")
