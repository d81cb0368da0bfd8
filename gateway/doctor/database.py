"""Examine the registry's database: whether it is whole, current, unlocked, and what its keys and times say."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tunery.gateway.doctor.finding import Examined, Finding, fail, ok, warn
from tunery.gateway.doctor.reading import columns, limit_time, open_unchanged
from tunery.registry.storage.manifests import Manifests
from tunery.registry.storage.schema import HEAD

__all__ = ["check_clock", "check_database", "check_keys", "check_lock"]

_SECONDS = 2.0
_WRITE_LOCK = 120
"""The byte of the file of shared memory that a writer locks in WAL mode; see SQLite's wal.c and os_unix.c."""
_FLOCK = "hhqqi4x"
_LOCKED_SECONDS = 1.0
_SOON = 7 * 86400
_SKEW = 60.0
_TIMES = (("versions", "created_at"), ("alias_moves", "moved_at"), ("jobs", "updated_at"), ("api_keys", "created_at"))
_YEARS = range(2024, 2100)
_RESTORE = "restore a backup (tunery restore), or make it again with tunery registry rebuild"


def check_database(examined: Examined) -> Iterator[Finding]:
    """Whether it can be read, is whole, in WAL mode, of this release, and belongs to the blobs."""
    path = examined.home.database
    if not path.exists():
        yield _no_database(examined)
        return
    try:
        # Before there is a connection: closing a file gives up the locks that SQLite has on it in this process.
        in_wal = _is_wal(path)
        with open_unchanged(path) as connection:
            yield _integrity(connection, path, in_wal=in_wal, deep=examined.deep)
            yield _revision(connection)
            yield _identity(connection, examined)
    except (OSError, sqlite3.Error) as error:
        yield fail("database", f"{path} cannot be read ({error})", f"check its disk and permissions, or {_RESTORE}")


def _no_database(examined: Examined) -> Finding:
    blobs = examined.home.blobs
    if next(blobs.glob("??/*"), None) is not None:
        return fail(
            "database", f"there is none, and {blobs} has files", f"{_RESTORE}; check TUNERY_HOME and its volumes"
        )
    return warn("database", f"there is none in {examined.home.root}", "the first command that needs one makes it")


def _integrity(connection: sqlite3.Connection, path: Path, *, in_wal: bool, deep: bool) -> Finding:
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    if not deep:
        limit_time(connection, _SECONDS)
    try:
        rows = connection.execute("PRAGMA integrity_check(3)" if deep else "PRAGMA quick_check(3)").fetchall()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname != "SQLITE_INTERRUPT":
            raise
        return ok("database", f"{size}, readable; checking all of it takes longer: tunery doctor --deep")
    finally:
        connection.set_progress_handler(None, 0)
    found = [row[0] for row in rows if row[0] != "ok"]
    if found:
        return fail("database", f"{path} is damaged: {'; '.join(found)[:300]}", _RESTORE)
    if not in_wal:
        return warn("database", f"{size}, whole, not in WAL mode", "the next start sets it; check its file system")
    return ok("database", f"{size}, whole, in WAL mode")


def _is_wal(path: Path) -> bool:
    """What the database's header says: read without its log, SQLite itself does not."""
    with path.open("rb") as file:
        return file.read(20)[18:20] == b"\x02\x02"


def _revision(connection: sqlite3.Connection) -> Finding:
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    revision = row[0] if row else "none"
    if revision == HEAD:
        return ok("migrations", f"at {HEAD}, which is this release's")
    if revision > HEAD:
        return fail("migrations", f"at {revision}, and this release knows {HEAD}", "upgrade Tunery")
    return warn(
        "migrations", f"at {revision}, and this release needs {HEAD}", "the next start migrates it: back up first"
    )


def _identity(connection: sqlite3.Connection, examined: Examined) -> Finding:
    row = connection.execute("SELECT id FROM identity").fetchone() if columns(connection, "identity") else None
    ours, theirs = row[0] if row else None, Manifests(examined.home.manifests).id()
    if ours and theirs and ours != theirs:
        return fail(
            "registry", f"registry.db is of {ours[:12]}, and blobs/ of {theirs[:12]}", "mount each with its own volume"
        )
    return ok("registry", (ours or "no id yet")[:12])


def check_lock(examined: Examined) -> Iterator[Finding]:
    """Whether a process has held the write lock for long, and which."""
    shared = examined.home.database.with_name(examined.home.database.name + "-shm")
    if not shared.exists():
        yield ok("lock", "no process has the database open")
        return
    end, holder = time.monotonic() + _LOCKED_SECONDS, _writer(shared)
    while holder and time.monotonic() < end:
        time.sleep(0.02)
        holder = _writer(shared)
    if holder:
        yield warn(
            "lock",
            f"process {holder} has held the write lock for {_LOCKED_SECONDS:g} s",
            "others wait up to 30 s for it; if it hangs, end it: nothing committed is lost",
        )
    else:
        yield ok("lock", "free")


def _writer(shared: Path) -> int:
    """The process that holds the write lock, 0 when none does. Call it where this process has no connection open: closing
    the file gives up the locks that SQLite has on it here."""
    descriptor = os.open(shared, os.O_RDONLY)
    try:
        asked = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, _WRITE_LOCK, 1, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return 0 if kind == fcntl.F_UNLCK else int(pid)


def check_keys(examined: Examined) -> Iterator[Finding]:
    """Whether anybody could use a server, and which keys end soon."""
    with suppress(sqlite3.Error), open_unchanged(examined.home.database) as connection:
        if "expires_at" not in columns(connection, "api_keys"):
            return
        keys = connection.execute("SELECT id, expires_at FROM api_keys WHERE revoked_at IS NULL").fetchall()
        if not keys and not connection.execute("SELECT count(*) FROM api_keys").fetchone()[0]:
            yield ok("keys", "none yet: the first tunery serve makes one and prints it")
            return
        yield _active(keys, examined)
    return


def _active(keys: list[tuple[str, float | None]], examined: Examined) -> Finding:
    active = [(key, end) for key, end in keys if end is None or end > examined.now]
    ending = [key for key, end in active if end is not None and end < examined.now + _SOON]
    if not active and examined.settings.serve.auth:
        return fail("keys", "none is active, so nobody could use a server", "tunery keys create --tenant TENANT")
    if ending:
        return warn(
            "keys", f"{len(active)} active; end within a week: {', '.join(ending[:5])}", "tunery keys rotate KEY"
        )
    return ok("keys", f"{len(active)} active")


def check_clock(examined: Examined) -> Iterator[Finding]:
    """Whether the time is plausible, and not before what the database recorded."""
    year = time.gmtime(examined.now).tm_year
    if year not in _YEARS:
        yield fail("clock", f"it says {time.strftime('%Y-%m-%d', time.gmtime(examined.now))}", "set the clock (NTP)")
        return
    last = _last_time(examined.home.database)
    if last > examined.now + _SKEW:
        yield warn(
            "clock",
            f"the registry has times {(last - examined.now) / 60:.0f} minutes ahead of it",
            "set the clock (NTP); leases, limits and expiries count wrongly until then",
        )
        return
    yield ok("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(examined.now)))


def _last_time(path: Path) -> float:
    """The latest time in the registry; 0 where there is none."""
    latest = 0.0
    with suppress(sqlite3.Error), open_unchanged(path) as connection:
        limit_time(connection, 1.0)
        for table, column in _TIMES:
            if column in columns(connection, table):
                (found,) = connection.execute(f"SELECT max({column}) FROM {table}").fetchone()  # noqa: S608
                latest = max(latest, float(found or 0.0))
    return latest
