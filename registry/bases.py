"""Record bases, and find their folders again on whichever machine the home is.

A path within the home is kept relative to it, so that a home can be moved or copied; and the folder that the home has under a base's
digest is that base, whatever path an earlier release wrote down.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from sqlalchemy import Connection, insert, select, update

from tunery.registry.errors import Conflict
from tunery.registry.home import Home
from tunery.registry.records import Base
from tunery.registry.storage import schema
from tunery.registry.storage.mirror import Change
from tunery.registry.storage.rows import to_base

__all__ = ["add", "listed"]


def add(change: Change, base: Base, home: Home) -> Base:
    """Record a base; the same content again is the same base, another content under the name is refused."""
    found, connection = schema.bases.c, change.connection
    row = connection.execute(select(schema.bases).where(found.digest == base.digest)).first()
    if row is not None:
        return _found_again(change, _located(to_base(row), home), base, home)
    taken = connection.execute(select(schema.bases).where(found.name == base.name)).first()
    if taken is not None:
        raise Conflict(
            f"the name {base.name!r} belongs to another base ({taken.digest[:12]}); add this one under another name",
            code="base_exists",
        )
    stored = msgspec.structs.replace(base, path=_stored(base.path, home))
    connection.execute(insert(schema.bases).values(**msgspec.structs.asdict(stored)))
    change.added(stored)
    return _located(stored, home)


def listed(connection: Connection, home: Home) -> list[Base]:
    """All bases by name."""
    rows = connection.execute(select(schema.bases).order_by(schema.bases.c.name))
    return [_located(to_base(row), home) for row in rows]


def _stored(path: str, home: Home) -> str:
    place = Path(path)
    return place.relative_to(home.root).as_posix() if place.is_relative_to(home.root) else path


def _located(base: Base, home: Home) -> Base:
    own = home.bases / base.digest
    return msgspec.structs.replace(base, path=str(own if own.is_dir() else home.root / base.path))


def _found_again(change: Change, known: Base, base: Base, home: Home) -> Base:
    """The base as recorded; when its folder is gone, it now lies where it was found again."""
    if Path(known.path).is_dir() or not Path(base.path).is_dir():
        return known
    moved = msgspec.structs.replace(known, path=_stored(base.path, home))
    change.connection.execute(update(schema.bases).where(schema.bases.c.digest == known.digest).values(path=moved.path))
    change.added(moved)
    return _located(moved, home)
