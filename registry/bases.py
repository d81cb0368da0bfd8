"""Record bases, and find their folders again on whichever machine the home is.

A path within the home is kept relative to it, so that a home can be moved or copied; and the folder that the home has
under a base's digest is that base, whatever path an earlier release recorded.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from sqlalchemy import Connection, insert, select, update

from tunery.registry import audit
from tunery.registry.errors import Conflict, NotFound, near
from tunery.registry.home import Home
from tunery.registry.records import Base
from tunery.registry.storage import schema
from tunery.registry.storage.mapping import to_base
from tunery.registry.storage.mirror import Change

__all__ = ["add", "find", "list_all"]

_SHORTEST_DIGEST = 8


def add(change: Change, base: Base, home: Home, *, at: float) -> Base:
    """Record a base; the same content again is the same base.

    Raise Conflict (base_exists) where the name belongs to other content.
    """
    column, connection = schema.bases.c, change.connection
    row = connection.execute(select(schema.bases).where(column.digest == base.digest)).first()
    if row is not None:
        return _relocated(change, _located(to_base(row), home), base, home)
    namesake = connection.execute(select(schema.bases).where(column.name == base.name)).first()
    if namesake is not None:
        raise Conflict(
            f"the name {base.name!r} belongs to another base ({namesake.digest[:12]}); add this one under another name",
            code="base_exists",
        )
    stored = msgspec.structs.replace(base, path=_stored_path(base.path, home))
    connection.execute(insert(schema.bases).values(**msgspec.structs.asdict(stored)))
    audit.record(connection, "base.add", base.name, at=at, after={"digest": base.digest, "source": base.source})
    change.added(stored)
    return _located(stored, home)


def list_all(connection: Connection, home: Home) -> list[Base]:
    """All bases by name."""
    rows = connection.execute(select(schema.bases).order_by(schema.bases.c.name))
    return [_located(to_base(row), home) for row in rows]


def find(connection: Connection, name: str, home: Home) -> Base:
    """A base by name, source, digest or the start of it (8 characters at least); raise NotFound (base_not_found)."""
    known = list_all(connection, home)
    for base in known:
        prefix = len(name) >= _SHORTEST_DIGEST and base.digest.startswith(name)
        if prefix or name in (base.name, base.digest, base.source):
            return base
    raise NotFound(f"no base is called {name!r}: {near(name, [base.name for base in known])}", code="base_not_found")


def _stored_path(path: str, home: Home) -> str:
    return Path(path).relative_to(home.root).as_posix() if Path(path).is_relative_to(home.root) else path


def _located(base: Base, home: Home) -> Base:
    """The base with the path at which its folder is now."""
    folder = home.bases / base.digest
    return msgspec.structs.replace(base, path=str(folder if folder.is_dir() else home.root / base.path))


def _relocated(change: Change, known: Base, base: Base, home: Home) -> Base:
    """The base as recorded; when its recorded folder is gone and `base` has one, that is recorded instead."""
    if Path(known.path).is_dir() or not Path(base.path).is_dir():
        return known
    moved = msgspec.structs.replace(known, path=_stored_path(base.path, home))
    change.connection.execute(update(schema.bases).where(schema.bases.c.digest == known.digest).values(path=moved.path))
    change.added(moved)
    return _located(moved, home)
