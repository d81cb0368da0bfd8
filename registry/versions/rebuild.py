"""Make a lost or outdated database again from the manifests beside the blobs.

What the database has stays as it is; what only the manifests have is added: versions, bases, and the moves of aliases,
which say where each alias points. Jobs are kept nowhere else and are not restored.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from tunery.registry.errors import Conflict, NotFound, StorageFailed
from tunery.registry.home import Home
from tunery.registry.storage import schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import Database
from tunery.registry.storage.manifests import Manifests, Move
from tunery.registry.storage.mirror import Mirror, moves_after
from tunery.registry.versions.publish import insert_version

__all__ = ["Rebuilt", "rebuild"]


class Rebuilt(msgspec.Struct, kw_only=True):
    """What a rebuild added.

    `moved_aside` is where a damaged database was moved to; `unreadable` names manifests that could not be read, and
    `unfinished` versions whose publication may have been cut short.
    """

    versions: int = 0
    bases: int = 0
    moves: int = 0
    moved_aside: str | None = None
    unreadable: list[str] = []
    unfinished: list[str] = []


def rebuild(home: Home) -> Rebuilt:
    """Add what the manifests of `home` have and its database does not.

    Raise NotFound (nothing_to_rebuild) where there are no manifests, and Conflict (registry_mismatch) where they are of
    another registry.
    """
    home.ensure()
    manifests, blobs = Manifests(home.manifests), BlobStore(home.blobs, home.staging)
    done = Rebuilt(moved_aside=_set_aside(home.database))
    if not home.database.exists():
        _require_manifests(home, manifests, blobs)
    # Where there is no database, it appears with everything in it or not at all.
    database = Database(home.database, on_create=lambda connection: _merge(connection, manifests, done))
    try:
        mirror = Mirror(database, manifests, blobs)
        with database.write() as connection:
            _require_same_registry(connection, manifests)
            _merge(connection, manifests, done)
            mirror.sync(connection)
            _rewrite_moves(connection, manifests)
        mirror.initialise()
    finally:
        database.close()
    return done


def _set_aside(path: Path) -> str | None:
    """Move a damaged database away; the name it has now, or None where there is none or it is sound."""
    if not path.exists() or not path.stat().st_size:
        return None
    try:
        database = Database(path)
        with contextlib.closing(database), database.read() as connection:
            if connection.exec_driver_sql("PRAGMA quick_check").scalar() == "ok":
                return None
    except StorageFailed as error:
        if error.code != "registry_damaged":
            raise
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    path.rename(aside)
    return str(aside)


def _require_manifests(home: Home, manifests: Manifests, blobs: BlobStore) -> None:
    if next(manifests.numbers(), None) is None and not manifests.bases() and blobs.count():
        raise NotFound(
            f"{home.manifests} has no manifests to make {home.database.name} from: check that the right volume is "
            f"mounted, or restore a backup of {home.database.name}. When none of the {blobs.count()} files in "
            f"{home.blobs} is needed, move them away",
            code="nothing_to_rebuild",
        )


def _require_same_registry(connection: Connection, manifests: Manifests) -> None:
    ours, theirs = connection.scalar(select(schema.identity.c.id)), manifests.id()
    if ours is not None and theirs is not None and ours != theirs:
        raise Conflict(
            f"registry.db is of the registry {ours}, and blobs/ belongs to {theirs}; nothing was changed: move "
            "registry.db away and rebuild again, or put it with its own blobs",
            code="registry_mismatch",
        )


def _merge(connection: Connection, manifests: Manifests, done: Rebuilt) -> None:
    if connection.scalar(select(schema.identity.c.id)) is None and (theirs := manifests.id()) is not None:
        connection.execute(insert(schema.identity).values(id=theirs))
    _take_versions(connection, manifests, done)
    _take_bases(connection, manifests, done)
    _take_moves(connection, manifests, done)


def _take_versions(connection: Connection, manifests: Manifests, done: Rebuilt) -> None:
    column = schema.versions.c
    known = {(row.adapter, row.number) for row in connection.execute(select(column.adapter, column.number))}
    unfinished = set(manifests.unfinished())
    for adapter, number in sorted({*manifests.numbers(), *unfinished} - known):
        version = manifests.version(adapter, number)
        if version is None:
            if f"{adapter}@{number}" not in done.unreadable:
                done.unreadable.append(f"{adapter}@{number}")
            continue
        _number(connection, adapter, number, version.created_at)
        insert_version(connection, version)
        done.versions += 1
        if (adapter, number) in unfinished:
            done.unfinished.append(version.name)
    for adapter, number in manifests.highest().items():
        if f"{adapter}@{number}" not in done.unreadable:
            _number(connection, adapter, number, 0.0)


def _number(connection: Connection, adapter: str, number: int, at: float) -> None:
    """An adapter has been given this number, so that it is not given again."""
    column = schema.adapters.c
    last = connection.scalar(select(column.last_number).where(column.name == adapter))
    if last is None:
        connection.execute(insert(schema.adapters).values(name=adapter, last_number=number, created_at=at))
    elif last < number:
        connection.execute(update(schema.adapters).where(column.name == adapter).values(last_number=number))


def _take_bases(connection: Connection, manifests: Manifests, done: Rebuilt) -> None:
    column = schema.bases.c
    known = {row.digest: row.name for row in connection.execute(select(column.digest, column.name))}
    for base in manifests.bases():
        if base.digest in known:
            continue
        name = base.name if base.name not in known.values() else f"{base.name}-{base.digest[:8]}"
        known[base.digest] = name
        connection.execute(insert(schema.bases).values(**msgspec.structs.asdict(base) | {"name": name}))
        done.bases += 1


def _take_moves(connection: Connection, manifests: Manifests, done: Rebuilt) -> None:
    """All moves of both, each once and in order of time; an alias points where the last one of it went."""
    adapters = set(connection.scalars(select(schema.adapters.c.name)))
    mirrored = {_content(move): move for move in manifests.moves() if move.adapter in adapters}
    known = {_content(move): move for adapter in adapters for move in moves_after(connection, adapter, 0)}
    if not (mirrored.keys() - known.keys() or done.versions):
        return
    moves = sorted((mirrored | known).values(), key=lambda move: (move.moved_at, move.id))
    done.moves += len(moves) - len(known)
    connection.execute(delete(schema.alias_moves))
    rows = [msgspec.structs.asdict(move) | {"id": number} for number, move in enumerate(moves, 1)]
    if rows:
        connection.execute(insert(schema.alias_moves), rows)
    connection.execute(delete(schema.aliases))
    pointing = {(move.adapter, move.alias): move.after for move in moves}
    versions = {(row.adapter, row.number) for row in connection.execute(select(schema.versions))}
    for (adapter, alias), number in pointing.items():
        if number is not None and (adapter, number) in versions:
            connection.execute(insert(schema.aliases).values(adapter=adapter, alias=alias, number=number))


def _content(move: Move) -> tuple[object, ...]:
    return (move.adapter, move.alias, move.before, move.after, move.moved_at, move.actor, move.kind)


def _rewrite_moves(connection: Connection, manifests: Manifests) -> None:
    """The numbers of moves may be others now."""
    for adapter in connection.scalars(select(schema.alias_moves.c.adapter).distinct()).all():
        manifests.write_moves(adapter, moves_after(connection, adapter, 0))
