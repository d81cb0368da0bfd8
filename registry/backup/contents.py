"""Gather what a backup holds, so that it stays as it is while others write, publish and collect.

The folders of jobs and batches come first and the database after them: a history that is ahead of a checkpoint is what a
crash leaves too, the other way around nothing can go on from.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import msgspec
from sqlalchemy import Connection, select

from tunery.registry.backup.files import digest_of_first
from tunery.registry.backup.histories import linked_files
from tunery.registry.backup.manifest import DATABASE, Entry, is_safe
from tunery.registry.backup.snapshot import snapshot
from tunery.registry.errors import StorageFailed
from tunery.registry.home import Home
from tunery.registry.storage import schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import Database
from tunery.registry.versions.upkeep import needed_blobs

__all__ = ["Contents", "Item", "gather"]

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
    histories = [
        *linked_files(home.jobs, lease, checkpoints=checkpoints),
        *linked_files(home.batches, lease, checkpoints=True),
    ]
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
    strange = {item.entry.sha256: item.entry.path for item in items if not is_safe(item.entry)}
    return Contents(
        items=tuple(item for item in items if is_safe(item.entry)),
        revision=view.revision,
        registry=view.registry,
        missing=view.missing
        | {sha256: f"{path!r} has a name that no backup holds" for sha256, path in strange.items()},
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
