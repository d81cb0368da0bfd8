"""Owns the connection to SQLite and its migrations; refuses to know what the tables mean.

Writers take the lock when they begin (BEGIN IMMEDIATE): a transaction that first reads and then writes would otherwise
fail at once with SQLITE_BUSY when somebody wrote in between, whatever the timeout.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DatabaseError, OperationalError

from tunery.registry.errors import InvalidInput, StorageFailed
from tunery.registry.schema import HEAD

__all__ = ["Database"]

BUSY_SECONDS = 30


class Database:
    """One SQLite file; `read` and `write` give a connection for one transaction."""

    def __init__(self, path: Path) -> None:
        self._engine = _engine(path)
        self._path = path
        self._lock = threading.Lock()
        try:
            self._migrate()
            self._watch = self._engine.connect()
        except DatabaseError as error:
            self._engine.dispose()
            raise StorageFailed(f"{path} is not a registry that can be opened: {error.orig}") from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view."""
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            except DatabaseError as error:
                raise StorageFailed(f"{self._path} could not be read: {error.orig}") from error
            finally:
                _roll_back(connection)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The only writer; committed when the block ends well, rolled back otherwise."""
        with self._engine.connect() as connection:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            except OperationalError as error:
                raise StorageFailed(
                    f"{self._path} stayed locked for {BUSY_SECONDS} s by another process; try again"
                ) from error
            try:
                yield connection
                connection.exec_driver_sql("COMMIT")
            except DatabaseError as error:
                _roll_back(connection)
                raise StorageFailed(
                    f"{self._path} could not be written: {error.orig}; nothing was changed", code=_code(error)
                ) from error
            except BaseException:
                _roll_back(connection)
                raise

    def changes(self) -> int:
        """Differs from the last call's result when anybody, this process included, committed in between."""
        # A connection of its own: data_version does not count what the asking connection commits.
        with self._lock:
            version: int = self._watch.exec_driver_sql("PRAGMA data_version").scalar_one()
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
                if self._revision(connection) != HEAD:
                    _upgrade(connection, self._path)
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


def _engine(path: Path) -> Engine:
    """An engine whose transactions are ours alone: the driver begins none by itself."""
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, record: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _code(error: DatabaseError) -> str | None:
    """`disk_full` where SQLite says so; its own code otherwise."""
    return "disk_full" if getattr(error.orig, "sqlite_errorname", None) == "SQLITE_FULL" else None


def _roll_back(connection: Connection) -> None:
    """Through the driver, which knows whether SQLite has already rolled back by itself, as it does on a full disk."""
    connection.connection.rollback()


def _upgrade(connection: Connection, path: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise InvalidInput(
            f"{path} was written by a newer Tunery ({error}); upgrade Tunery or choose another TUNERY_HOME",
            code="registry_too_new",
        ) from error
