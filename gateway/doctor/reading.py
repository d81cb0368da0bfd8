"""Read a database without changing anything beside it either."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

__all__ = ["columns", "limit_time", "open_unchanged"]

_STEPS = 10_000


@contextmanager
def open_unchanged(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that makes no files; raises sqlite3.Error.

    Without a log beside it nobody writes to the database, and SQLite need not look for one, which it would make.
    """
    log = path.with_name(path.name + "-wal")
    mode = "mode=ro" if log.exists() else "mode=ro&immutable=1"
    with closing(sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, timeout=1.0)) as connection:
        yield connection


def limit_time(connection: sqlite3.Connection, seconds: float) -> None:
    """Interrupt whatever a connection does when the time is over: it raises OperationalError (SQLITE_INTERRUPT)."""
    end = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > end, _STEPS)


def columns(connection: sqlite3.Connection, table: str) -> set[str]:
    """The columns of a table; none where there is no such table."""
    return {row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}
