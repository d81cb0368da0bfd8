"""Gather what a backup holds, so that it stays as it is while others write, publish and collect.

The folders of jobs and batches come first and the database after them: a history that is ahead of a checkpoint is what a
crash leaves too, the other way around nothing can go on from.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path

import msgspec
from sqlalchemy import Connection, select

from tunery.registry.backup.files import digest_of_first
from tunery.registry.backup.manifest import DATABASE, Entry
from tunery.registry.errors import StorageFailed
from tunery.registry.home import Home
from tunery.registry.storage import schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import BUSY_SECONDS, Database
from tunery.registry.versions.upkeep import needed_blobs

__all__ = ["Contents", "Item", "gather", "is_read_only"]

_HISTORY = ("request.json", "manifest.json", "metrics.jsonl", "report")
"""What is kept of every job."""
_MOMENTARY = ("lock", "control", "output", "epoch")
"""What is of no use once the process that runs a job is gone."""
_TRIES = 3


class Item(msgspec.Struct, frozen=True):
    """A file for a backup: where its bytes are now."""

    entry: Entry
    source: Path


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """Everything for a backup; the first item is the database. `missing` says which blobs are not there, in words."""

    items: tuple[Item, ...]
    revision: str
    registry: str | None
    missing: dict[str, str]
    outside: tuple[str, ...]


def gather(home: Home, blobs: BlobStore, lease: Path, *, checkpoints: bool, known: Mapping[str, Entry]) -> Contents:
    """Collect what is to be backed up under a lease of the blobs; nothing of it changes until the lease ends.

    `known` are entries of an earlier backup, whose digests of bases are trusted. Raise StorageFailed.
    """
    histories = [*_linked(home.jobs, lease, checkpoints=checkpoints), *_linked(home.batches, lease, checkpoints=True)]
    view = _consistent(home, blobs, lease)
    database = lease / "snapshot.db"
    items = [_item(DATABASE, database)]
    items += [
        Item(Entry(f"blobs/{sha256[:2]}/{sha256}", sha256, blobs.path(sha256).stat().st_size), blobs.path(sha256))
        for sha256 in sorted(view.needed - view.missing.keys())
    ]
    items += _bases(home, view.bases, known)
    items += [_item(path, source) for path, source in histories]
    if (home.root / "config.toml").is_file():
        items.append(_item("config.toml", home.root / "config.toml"))
    return Contents(
        items=tuple(items),
        revision=view.revision,
        registry=view.registry,
        missing=view.missing,
        outside=tuple(sorted(name for name, digest in view.bases.items() if not (home.bases / digest).is_dir())),
    )


class _View(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy of the database says; `bases` are digests by name."""

    revision: str
    registry: str | None
    needed: frozenset[str]
    bases: dict[str, str]
    missing: dict[str, str] = {}


def _consistent(home: Home, blobs: BlobStore, lease: Path) -> _View:
    """A copy of the database whose blobs are held.

    What a collection removed between the copy and the hold was not needed any more, so a newer copy does not name it.
    """
    before: set[str] = set()
    for _ in range(_TRIES):
        snapshot(home.database, lease / "snapshot.db")
        view = _view(lease)
        missing = blobs.hold(view.needed, lease=lease)
        if not missing or missing == before:
            break
        before = missing
    return msgspec.structs.replace(view, missing=_described(lease, missing)) if missing else view


def snapshot(database: Path, target: Path) -> None:
    """Copy a database as it is at one moment, while others write to it; raise StorageFailed."""
    target.unlink(missing_ok=True)
    try:
        source = _copied(database, target.parent) if is_read_only(database.parent) else database
        with closing(sqlite3.connect(source, timeout=BUSY_SECONDS)) as connection:
            connection.execute("VACUUM INTO ?", (str(target),))
        with closing(sqlite3.connect(target)) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        name: str = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            raise _damaged(database, str(error)) from error
        raise StorageFailed(f"{database} could not be copied ({error}); nothing was backed up") from error
    if found != "ok":
        raise _damaged(database, found)


def is_read_only(folder: Path) -> bool:
    """Whether the disk of a folder is mounted so that nothing can be written."""
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _copied(database: Path, folder: Path) -> Path:
    """A copy of a database with its log, for SQLite to write beside; raise StorageFailed where it changes meanwhile."""
    files = {suffix: Path(f"{database}{suffix}") for suffix in ("", "-wal")}
    before = [_stamp(path) for path in files.values()]
    for suffix, path in files.items():
        with suppress(FileNotFoundError):
            shutil.copyfile(path, folder / f"copied.db{suffix}")
    if before != [_stamp(path) for path in files.values()]:
        raise StorageFailed(
            f"{database} is read-only here and written from elsewhere; nothing was backed up: back up where it can be written"
        )
    return folder / "copied.db"


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _damaged(database: Path, why: str) -> StorageFailed:
    return StorageFailed(
        f"{database} is damaged ({why}), so it was not backed up: restore an older backup, or run "
        "`tunery registry rebuild`",
        code="registry_damaged",
    )


def _view(lease: Path) -> _View:
    """Read the copy, by way of another one that is migrated: what is backed up stays as it was."""
    copy = lease / "migrated.db"
    shutil.copyfile(lease / "snapshot.db", copy)
    try:
        with closing(sqlite3.connect(copy)) as plain:
            (revision,) = plain.execute("SELECT version_num FROM alembic_version").fetchone()
    except (sqlite3.DatabaseError, TypeError) as error:
        raise StorageFailed("registry.db holds no registry; nothing was backed up") from error
    with closing(Database(copy)) as database, database.read() as connection:
        base = schema.bases.c
        return _View(
            revision=revision,
            registry=connection.scalar(select(schema.identity.c.id)),
            needed=frozenset(needed_blobs(connection)),
            bases={row.name: row.digest for row in connection.execute(select(base.name, base.digest))},
        )


def _described(lease: Path, missing: set[str]) -> dict[str, str]:
    with closing(Database(lease / "migrated.db")) as database, database.read() as connection:
        return {sha256: f"{_owner(connection, sha256)} is missing" for sha256 in sorted(missing)}


def _owner(connection: Connection, sha256: str) -> str:
    """What a blob is, in words."""
    file, data = schema.files.c, schema.data_files.c
    row = connection.execute(select(file.adapter, file.number, file.path).where(file.sha256 == sha256)).first()
    if row is not None:
        return f"{row.adapter}@{row.number}: {row.path}"
    file_id = connection.scalar(select(data.id).where(data.sha256 == sha256))
    return file_id or f"the file {sha256[:12]} of a checkpoint or evaluation"


def _item(path: str, source: Path) -> Item:
    size = source.stat().st_size
    return Item(Entry(path, digest_of_first(source, size), size), source)


def _bases(home: Home, bases: Mapping[str, str], known: Mapping[str, Entry]) -> Iterator[Item]:
    """The files of the bases in the home, which never change: one digest is enough for all backups."""
    for digest in sorted(set(bases.values())):
        folder = home.bases / digest
        for source in sorted(folder.iterdir()) if folder.is_dir() else ():
            if source.is_file():
                path = f"bases/{digest}/{source.name}"
                same = known.get(path)
                fits = same is not None and same.size == source.stat().st_size
                yield Item(same, source) if same is not None and fits else _item(path, source)


# -- folders that change -----------------------------------------------------------------------------------------------


def _linked(folder: Path, lease: Path, *, checkpoints: bool) -> Iterator[tuple[str, Path]]:
    """The files of each job or batch by their paths below the home, held by links under the lease."""
    for one in sorted(folder.iterdir()) if folder.is_dir() else ():
        if one.is_dir() and not one.is_symlink():
            place = lease / folder.name / one.name
            for _ in range(_TRIES):
                shutil.rmtree(place, ignore_errors=True)
                before = _listing(one, checkpoints=checkpoints)
                linked = list(_link(one, place, before))
                if before == _listing(one, checkpoints=checkpoints):
                    break
            yield from ((f"{folder.name}/{one.name}/{name}", path) for name, path in linked)


def _listing(folder: Path, *, checkpoints: bool) -> dict[str, int]:
    """The inode of each file by its path below `folder`: a checkpoint that is replaced meanwhile has others."""
    found = {}
    for parent, folders, names in os.walk(folder):
        relative = Path(parent).relative_to(folder)
        if relative == Path():
            wanted = [name for name in (*folders, *names) if _is_kept(name, checkpoints=checkpoints)]
            folders[:], names = [name for name in folders if name in wanted], [name for name in names if name in wanted]
        for name in names:
            with suppress(OSError):
                path = Path(parent, name)
                if path.is_file() and not path.is_symlink() and not name.endswith(".new"):
                    found[(relative / name).as_posix()] = path.stat().st_ino
    return found


def _is_kept(name: str, *, checkpoints: bool) -> bool:
    return name not in _MOMENTARY if checkpoints else name in _HISTORY


def _link(folder: Path, place: Path, names: Mapping[str, int]) -> Iterator[tuple[str, Path]]:
    for name in sorted(names):
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(folder / name)
        except FileNotFoundError:
            continue
        except OSError:
            with suppress(FileNotFoundError):
                shutil.copyfile(folder / name, target)
        if target.exists():
            yield name, target
