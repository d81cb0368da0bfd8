"""Open the SQLite database, migrate it, and run transactions.

Writers take the lock when they begin (BEGIN IMMEDIATE): a transaction that first reads and then writes would otherwise
fail at once with SQLITE_BUSY when another process wrote in between, whatever the timeout.

A database that is removed or replaced while it is open is still read from the connections that are open; it is never
made anew, and nothing is written to it.

On a full disk SQLite cannot make the small file of shared memory that WAL mode needs. A database that no other process
has open is then opened exclusively (locking_mode=EXCLUSIVE), which keeps that memory in the process; enough for reading
and for a collection.
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Engine, QueuePool, StaticPool, create_engine, event, inspect, text
from sqlalchemy.exc import DatabaseError

from tunery.registry.errors import InvalidInput, StorageBusy, StorageFailed
from tunery.registry.storage.disk import no_room
from tunery.registry.storage.schema import HEAD

__all__ = ["BUSY_SECONDS", "Database", "Transaction"]

BUSY_SECONDS = 30.0
"""How long a transaction waits for the lock that another process holds."""
BUSY_PAUSE = 0.01
FAILING_SECONDS = 60.0
"""How long a failed change counts, unless one succeeds in the meantime."""

Created = Callable[[Connection], None]
Kind = Literal["read", "write"]


class Transaction(msgspec.Struct, frozen=True):
    """A transaction, as an observer sees it: its seconds, waiting included, and the code of the error of the database
    that ended it, or None."""

    kind: Kind
    seconds: float
    failure: str | None


Observer = Callable[[Transaction], None]


class Database:
    """One SQLite file; `read` and `write` give a connection for one transaction.

    `on_create` is called within the transaction that makes the tables, which is rolled back when it raises. `scarce`
    opens the database exclusively where the disk is too full to share it. Errors of SQLite become StorageFailed, and
    StorageBusy where another process has held the lock for `busy_seconds`.
    """

    def __init__(
        self,
        path: Path,
        *,
        on_create: Created = lambda connection: None,
        scarce: bool = False,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        self._path = path
        self._busy_seconds = busy_seconds
        self._file: tuple[int, int] | None = None
        self._observer: Observer | None = None
        self._failed_at = -math.inf
        self._on_create = on_create
        self._lock = threading.Lock()
        try:
            self._open(alone=False)
        except DatabaseError as error:
            if not (scarce and no_room(path.parent)):
                raise self._failure(error, "cannot be opened") from error
            try:
                self._open(alone=True)
            except DatabaseError as again:
                raise self._failure(again, "cannot be opened") from again

    def _open(self, *, alone: bool) -> None:
        self._engine = _engine(self._connect, alone=alone)
        try:
            self._migrate()
            self._watch = self._engine.connect()
            self._seen, self._number = -1, -1
            self._file = _identity(self._path)
        except BaseException:
            self._engine.dispose()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view."""
        with self._connection("read") as connection:
            connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            finally:
                _roll_back(connection)

    @contextmanager
    def write(self, *, announced: bool = True) -> Iterator[Connection]:
        """The only writer; committed when the block ends well, rolled back otherwise.

        What is not `announced` is written often and looked at by nobody who waits for it: `changes` stays as it is.
        """
        with self._connection("write") as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                if self.is_replaced():
                    raise self._replaced()
                yield connection
                if announced:
                    connection.exec_driver_sql("UPDATE revision SET number = number + 1")
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise

    @contextmanager
    def write_lightly(self) -> Iterator[Connection]:
        """As `write`, not announced, without waiting for the disk: what a power failure may take back."""
        with self._connection("write") as connection:
            connection.exec_driver_sql("PRAGMA synchronous=NORMAL")
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    if self.is_replaced():
                        raise self._replaced()
                    yield connection
                    connection.exec_driver_sql("COMMIT")
                except BaseException:
                    _roll_back(connection)
                    raise
            finally:
                connection.exec_driver_sql("PRAGMA synchronous=FULL")

    @contextmanager
    def _connection(self, kind: Kind) -> Iterator[Connection]:
        """A connection; an error of SQLite becomes StorageFailed, also one of opening the file."""
        started, failure = time.monotonic(), None
        try:
            with self._engine.connect() as connection:
                yield connection
        except DatabaseError as error:
            failed = self._failure(error, "cannot be read" if kind == "read" else "cannot be written")
            failure = failed.code
            raise failed from error
        except StorageFailed as error:
            failure = error.code
            raise
        finally:
            self._note(Transaction(kind, time.monotonic() - started, failure))

    def _note(self, transaction: Transaction) -> None:
        if transaction.kind == "write":
            self._failed_at = -math.inf if transaction.failure is None else time.monotonic()
        if self._observer is not None:
            self._observer(transaction)

    def observe(self, observer: Observer) -> None:
        """Call `observer` after every transaction, from the thread that made it."""
        self._observer = observer

    def is_replaced(self) -> bool:
        """Whether the file was removed or replaced since it was opened."""
        return _identity(self._path) != self._file

    def is_writable(self) -> bool:
        """Whether changes can be made as far as is known without making one: the file is in place, on a disk that can be
        written, and the last change did not fail a moment ago."""
        if self.is_replaced() or time.monotonic() - self._failed_at < FAILING_SECONDS:
            return False
        return not os.statvfs(self._path).f_flag & os.ST_RDONLY

    def changes(self) -> int:
        """A number that differs from the last call's when any process, this one included, announced a change in between."""
        # A connection of its own: data_version does not count what the asking connection commits.
        try:
            with self._lock:
                seen: int = self._watch.exec_driver_sql("PRAGMA data_version").scalar_one()
                if seen != self._seen:
                    self._number = self._watch.exec_driver_sql("SELECT number FROM revision").scalar_one()
                    self._seen = seen
                return self._number
        except DatabaseError as error:
            raise self._failure(error, "cannot be read") from error

    def close(self) -> None:
        """Close the connections."""
        # Not while another thread asks for changes: closing a connection that SQLite is working on ends the process.
        with self._lock:
            self._watch.close()
        self._engine.dispose()

    def _connect(self) -> sqlite3.Connection:
        # Only the first connection may make the file: one that is gone must not come back empty.
        mode = "rwc" if self._file is None else "rw"
        return sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=self._busy_seconds,
            check_same_thread=False,
            isolation_level=None,
        )

    def _failure(self, error: DatabaseError, what: str) -> StorageFailed:
        if self._file is not None and self.is_replaced():
            return self._replaced()
        return _failure(self._path, error, what, busy_seconds=self._busy_seconds)

    def _replaced(self) -> StorageFailed:
        return StorageFailed(
            f"{self._path} was removed or replaced since this process opened it; nothing was changed: restart this process",
            code="registry_replaced",
        )

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


def _engine(connect: Callable[[], sqlite3.Connection], *, alone: bool) -> Engine:
    """An engine whose driver begins no transactions; with `alone`, one connection that locks out other processes."""
    engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool if alone else QueuePool)

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


def _failure(path: Path, error: DatabaseError, what: str, *, busy_seconds: float) -> StorageFailed:
    """The error for what went wrong with a database, by its true cause."""
    name: str = getattr(error.orig, "sqlite_errorname", None) or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StorageBusy(
            f"{path} stayed locked for {busy_seconds:g} s by another process; nothing was changed: try again"
        )
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
