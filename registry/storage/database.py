"""Open the SQLite database, migrate it, and run transactions.

Writers take the lock when they begin (BEGIN IMMEDIATE): a transaction that first reads and then writes would otherwise
fail at once with SQLITE_BUSY when another process wrote in between, whatever the timeout.

On a full disk SQLite cannot make the small file of shared memory that WAL mode needs. A database that no other process
has open is then opened exclusively (locking_mode=EXCLUSIVE), which keeps that memory in the process; enough for reading
and for a collection.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, StaticPool, create_engine, event, inspect, text
from sqlalchemy.exc import DatabaseError

from tunery.registry.errors import InvalidInput, StorageFailed
from tunery.registry.storage.disk import no_room
from tunery.registry.storage.schema import HEAD

__all__ = ["Database"]

BUSY_SECONDS = 30
BUSY_PAUSE = 0.01

Created = Callable[[Connection], None]


class Database:
    """One SQLite file; `read` and `write` give a connection for one transaction.

    `on_create` is called within the transaction that makes the tables, which is rolled back when it raises. `scarce`
    opens the database exclusively where the disk is too full to share it. Errors of SQLite become StorageFailed.
    """

    def __init__(self, path: Path, *, on_create: Created = lambda connection: None, scarce: bool = False) -> None:
        self._path = path
        self._on_create = on_create
        self._lock = threading.Lock()
        try:
            self._open(alone=False)
        except DatabaseError as error:
            if not (scarce and no_room(path.parent)):
                raise _failure(path, error, "cannot be opened") from error
            try:
                self._open(alone=True)
            except DatabaseError as again:
                raise _failure(path, again, "cannot be opened") from again

    def _open(self, *, alone: bool) -> None:
        self._engine = _engine(self._path, alone=alone)
        try:
            self._migrate()
            self._watch = self._engine.connect()
            self._file = _identity(self._path)
        except BaseException:
            self._engine.dispose()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view."""
        with self._connection("cannot be read") as connection:
            connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            finally:
                _roll_back(connection)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The only writer; committed when the block ends well, rolled back otherwise."""
        with self._connection("cannot be written") as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                if _identity(self._path) != self._file:
                    raise StorageFailed(
                        f"{self._path} was removed or replaced since this process opened it; nothing was changed: "
                        "restart this process",
                        code="registry_replaced",
                    )
                yield connection
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise

    @contextmanager
    def _connection(self, what: str) -> Iterator[Connection]:
        """A connection; an error of SQLite becomes StorageFailed, also one of opening the file."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except DatabaseError as error:
            raise _failure(self._path, error, what) from error

    def changes(self) -> int:
        """A number that differs from the last call's when any process, this one included, committed in between."""
        # A connection of its own: data_version does not count what the asking connection commits.
        try:
            with self._lock:
                version: int = self._watch.exec_driver_sql("PRAGMA data_version").scalar_one()
        except DatabaseError as error:
            raise _failure(self._path, error, "cannot be read") from error
        return version

    def close(self) -> None:
        """Close the connections."""
        # Not while another thread asks for changes: closing a connection that SQLite is working on ends the process.
        with self._lock:
            self._watch.close()
        self._engine.dispose()

    def _migrate(self) -> None:
        """Bring the tables to HEAD under the write lock; Alembic is imported only when there is something to do."""
        if self._revision() == HEAD:
            return
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                before = self._revision(connection)
                if before != HEAD:
                    _upgrade(connection, self._path)
                if before is None:
                    self._on_create(connection)
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise

    def _revision(self, connection: Connection | None = None) -> str | None:
        if connection is None:
            with self._engine.connect() as own:
                return self._revision(own)
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _engine(path: Path, *, alone: bool) -> Engine:
    """An engine whose driver begins no transactions; with `alone`, one connection that locks out other processes."""
    pool: dict[str, Any] = {"poolclass": StaticPool} if alone else {}
    engine = create_engine(
        # Not a string: what looks like an escape sequence in a path is not one.
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False, "isolation_level": None},
        **pool,
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, record: Any) -> None:
        sharing = ("locking_mode=EXCLUSIVE",) if alone else ()
        try:
            for pragma in (*sharing, "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                _set(connection, pragma)
        except BaseException:
            connection.close()
            raise

    return engine


def _set(connection: sqlite3.Connection, pragma: str) -> None:
    """Set a pragma; SQLite does not wait by itself where several processes turn a new database to WAL at once."""
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute(f"PRAGMA {pragma}")
            return
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > give_up:
                raise
            time.sleep(BUSY_PAUSE)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file at a path, or None."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _failure(path: Path, error: DatabaseError, what: str) -> StorageFailed:
    """The error for what went wrong with a database, by its true cause."""
    name: str = getattr(error.orig, "sqlite_errorname", None) or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StorageFailed(f"{path} stayed locked for {BUSY_SECONDS} s by another process; try again")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return StorageFailed(
            f"{path} is damaged or not a database ({error.orig}): restore a backup, or run `tunery registry rebuild` "
            "to make it again from the manifests",
            code="registry_damaged",
        )
    if name == "SQLITE_FULL" or no_room(path.parent):
        return StorageFailed(
            f"{path} {what}: its disk is full; nothing was changed: free some space, for example with `tunery adapters "
            "gc`",
            code="disk_full",
        )
    return StorageFailed(f"{path} {what} ({error.orig}); nothing was changed: check its disk and its permissions")


def _roll_back(connection: Connection) -> None:
    """Roll back through the driver, which knows whether SQLite has done so by itself, as it does on a full disk."""
    connection.connection.rollback()


def _upgrade(connection: Connection, path: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    # A percent sign in a path must not be interpolated.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise InvalidInput(
            f"{path} was written by a newer Tunery ({error}); upgrade Tunery or choose another TUNERY_HOME",
            code="registry_too_new",
        ) from error
