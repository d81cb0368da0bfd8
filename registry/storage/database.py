"""Owns the connection to SQLite and its migrations; refuses to know what the tables mean.

Writers take the lock when they begin (BEGIN IMMEDIATE): a transaction that first reads and then writes would otherwise
fail at once with SQLITE_BUSY when somebody wrote in between, whatever the timeout.

On a full disk SQLite cannot make the small file of shared memory that WAL mode needs. A database that nobody else has open is then
opened alone (locking_mode=EXCLUSIVE), which keeps it in the process instead; that is enough for reading and for a collection.
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

    `on_create` is called within the transaction that makes the tables; what it raises undoes that. `scarce` opens the database alone
    where the disk is too full to share it.
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
                        f"{self._path} was removed or replaced since this process opened it; nothing was changed: start it again",
                        code="registry_replaced",
                    )
                yield connection
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise

    @contextmanager
    def _connection(self, what: str) -> Iterator[Connection]:
        """A connection; an error of SQLite is named wherever it comes up, opening the file included."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except DatabaseError as error:
            raise _failure(self._path, error, what) from error

    def changes(self) -> int:
        """Differs from the last call's result when anybody, this process included, committed in between."""
        # A connection of its own: data_version does not count what the asking connection commits.
        try:
            with self._lock:
                version: int = self._watch.exec_driver_sql("PRAGMA data_version").scalar_one()
        except DatabaseError as error:
            raise _failure(self._path, error, "cannot be read") from error
        return version

    def close(self) -> None:
        """Close the connections."""
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
    """An engine whose transactions are ours alone: the driver begins none by itself. `alone`, it has one connection and no sharers."""
    pool: dict[str, Any] = {"poolclass": StaticPool} if alone else {}
    engine = create_engine(
        # Not a string: what looks like an escape in a path is none.
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
    """Which file lies at a path now."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _failure(path: Path, error: DatabaseError, what: str) -> StorageFailed:
    """What went wrong with a database, by its true cause, and what to do."""
    said: str = getattr(error.orig, "sqlite_errorname", None) or ""
    if said.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StorageFailed(f"{path} stayed locked for {BUSY_SECONDS} s by another process; try again")
    if said.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return StorageFailed(
            f"{path} is damaged or no database ({error.orig}): put back a backup, or let `tunery registry rebuild` make it again "
            "from the manifests beside the files",
            code="registry_damaged",
        )
    if said == "SQLITE_FULL" or no_room(path.parent):
        return StorageFailed(
            f"{path} {what}: its disk is full; nothing was changed: free some space, for example with `tunery adapters gc`",
            code="disk_full",
        )
    return StorageFailed(f"{path} {what} ({error.orig}); nothing was changed: look at its disk and its permissions")


def _roll_back(connection: Connection) -> None:
    """Through the driver, which knows whether SQLite has already rolled back by itself, as it does on a full disk."""
    connection.connection.rollback()


def _upgrade(connection: Connection, path: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    # A percent sign in a path is no interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise InvalidInput(
            f"{path} was written by a newer Tunery ({error}); upgrade Tunery or choose another TUNERY_HOME",
            code="registry_too_new",
        ) from error
