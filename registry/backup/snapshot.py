"""Copy a database as it is at one moment, while others write to it, or from a disk that is read-only."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from tunery.registry.errors import StorageFailed
from tunery.registry.storage.database import BUSY_SECONDS

__all__ = ["is_read_only", "snapshot"]


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
