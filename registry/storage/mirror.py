"""Mirror the database in the manifests beside the blobs, and refuse to change blobs that belong to another database.

A database can be lost, replaced by an older backup, or meet the blobs of another home when a volume is mounted in the
wrong place. Nothing is published or collected then: what is there may be all that is left.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, func, insert, select

from tunery.registry.errors import StorageFailed, TuneryError, disk_code, some_of
from tunery.registry.home import Home
from tunery.registry.records import Base, Version
from tunery.registry.storage import schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import Database
from tunery.registry.storage.disk import room_or_not
from tunery.registry.storage.manifests import Manifests, Move
from tunery.registry.storage.mapping import to_base, to_versions

__all__ = ["Change", "Mirror", "moves_after", "refuse_empty_database", "refuse_missing_database"]

log = logging.getLogger("tunery.registry")

REBUILD = "`tunery registry rebuild`"


class Change:
    """A transaction that is mirrored in the manifests: call a method for each thing that it changes before it ends."""

    def __init__(self, connection: Connection, manifests: Manifests) -> None:
        self.connection = connection
        self._manifests = manifests
        self._pending: list[Path] = []
        self._removed: list[tuple[str, int]] = []
        self._moves: dict[str, list[Move]] = {}

    def published(self, version: Version) -> None:
        """A version was published."""
        self._pending.append(self._manifests.stage(version))

    def removed(self, adapter: str, number: int) -> None:
        """A version was removed."""
        self._removed.append((adapter, number))

    def moved(self, adapter: str) -> None:
        """Aliases of an adapter were moved; all moves that its manifest does not have yet are written."""
        self._moves[adapter] = moves_after(self.connection, adapter, self._manifests.last_move(adapter))

    def added(self, base: Base) -> None:
        """A base was added, or its path changed."""
        self._manifests.write_base(base)

    def settle(self) -> None:
        """After the commit; what cannot be written now is written by the next collection or rebuild."""
        for pending in self._pending:
            _try(self._manifests.settle, pending)
        for adapter, number in self._removed:
            _try(self._manifests.retire, adapter, number)
        for adapter, moves in self._moves.items():
            _try(self._manifests.add_moves, adapter, moves)

    def discard(self) -> None:
        """After a rollback."""
        for pending in self._pending:
            pending.unlink(missing_ok=True)


class Mirror:
    """The database and its manifests, written together."""

    def __init__(self, database: Database, manifests: Manifests, blobs: BlobStore) -> None:
        self._database, self._blobs = database, blobs
        self.manifests = manifests

    @contextmanager
    def write(self, *, watch: Callable[[str], None] = lambda step: None) -> Iterator[Change]:
        """A transaction; `watch` is called with the names of the moments before and after its end."""
        change: Change | None = None
        try:
            with self._database.write() as connection:
                change = Change(connection, self.manifests)
                yield change
                watch("staged")
        except BaseException as error:
            if change is not None:
                change.discard()
            if isinstance(error, OSError) and not isinstance(error, TuneryError):
                raise StorageFailed(
                    f"{error.filename or 'a manifest'} could not be written: {error.strerror}; nothing was changed",
                    code=disk_code(error),
                ) from error
            raise
        watch("settle")
        change.settle()

    def initialise(self) -> None:
        """Give a new registry its id, and write the manifests of a registry from a release that had none."""
        with self._database.read() as connection:
            if _id(connection) is not None:
                return
        with room_or_not(), self._database.write() as connection:
            if _id(connection) is None:
                matching = self._plausible(connection)
                new = (self.manifests.id() if matching else None) or uuid.uuid4().hex
                connection.execute(insert(schema.identity).values(id=new))
                if matching:
                    self.require_same_registry(connection)
                    self.sync(connection)

    def require_same_registry(self, connection: Connection) -> None:
        """Raise StorageFailed (registry_mismatch) unless the blobs belong to this database."""
        ours, theirs = _id(connection), self.manifests.id()
        if (ours is None or theirs is None) and self._plausible(connection):
            if ours is not None:
                _try(self.manifests.claim, ours)
        elif theirs is None:
            raise StorageFailed(
                "the files in blobs/ are not those that registry.db names; nothing was changed: check that the "
                "right volume is mounted there. If registry.db was lost and made again, restore a backup of it, or run "
                f"{REBUILD}",
                code="registry_mismatch",
            )
        elif theirs != ours:
            raise StorageFailed(
                f"registry.db is of the registry {ours}, and blobs/ belongs to {theirs}; nothing was changed: put "
                f"each with its own, or move registry.db away and run {REBUILD}",
                code="registry_mismatch",
            )

    def require_up_to_date(self, connection: Connection) -> None:
        """Raise StorageFailed (registry_behind) where there are manifests of versions unknown to the database."""
        last = _last_numbers(connection)
        unknown = [
            f"{adapter}@{number}" for adapter, number in self.manifests.numbers() if number > last.get(adapter, 0)
        ]
        if unknown:
            raise self.outdated(unknown)

    def outdated(self, versions: list[str]) -> StorageFailed:
        """The error for a database that is older than the manifests."""
        return StorageFailed(
            f"registry.db does not know {some_of(versions, 5)}, of which there are manifests in blobs/: it is older than they are; "
            f"nothing was changed: {REBUILD} adds them",
            code="registry_behind",
        )

    def sync(self, connection: Connection) -> None:
        """Write every manifest that is missing, and retire those of versions that were removed."""
        self._sync_versions(connection)
        moved = schema.alias_moves.c
        for adapter, last in connection.execute(select(moved.adapter, func.max(moved.id)).group_by(moved.adapter)):
            written = self.manifests.last_move(adapter)
            if written < last:
                self.manifests.add_moves(adapter, moves_after(connection, adapter, written))
        kept = {base.digest for base in self.manifests.bases()}
        for row in connection.execute(select(schema.bases)):
            if row.digest not in kept:
                self.manifests.write_base(to_base(row))

    def _sync_versions(self, connection: Connection) -> None:
        known, last = {(v.adapter, v.number): v for v in _versions(connection)}, _last_numbers(connection)
        for (adapter, number), version in known.items():
            if self.manifests.version(adapter, number) is None or not self.manifests.has(adapter, number):
                self.manifests.settle(self.manifests.stage(version))
        for adapter, number in list(self.manifests.numbers()):
            if (adapter, number) not in known and number <= last.get(adapter, 0):
                self.manifests.retire(adapter, number)

    def _plausible(self, connection: Connection) -> bool:
        """Whether the blobs can be this database's: it needs one of those that are there, or neither has any."""
        needed = connection.scalars(select(schema.files.c.sha256).distinct()).all()
        return any(self._blobs.path(sha256).exists() for sha256 in needed) if needed else not self._blobs.count()


def refuse_missing_database(home: Home, manifests: Manifests, blobs: BlobStore) -> None:
    """Raise StorageFailed (registry_lost) where there are blobs and no database; call it before one would be made."""
    if not home.database.exists():
        kept = _kept(manifests, blobs)
        # Looked at again: whoever makes a registry meanwhile makes its database first.
        if kept and not home.database.exists():
            raise _lost(home, kept)


def refuse_empty_database(home: Home, manifests: Manifests, blobs: BlobStore) -> None:
    """The same where the database's file is there but empty; call it while its tables are being made."""
    if kept := _kept(manifests, blobs):
        raise _lost(home, kept)


def _kept(manifests: Manifests, blobs: BlobStore) -> str:
    """What is in blobs/ that only a database gives a use, in words; empty when nothing is."""
    versions, files = sum(1 for _ in manifests.numbers()), blobs.count()
    return f"{files} files and the manifests of {versions} versions" if files or versions else ""


def _lost(home: Home, kept: str) -> StorageFailed:
    return StorageFailed(
        f"{home.database} is missing or empty, and {home.blobs} holds {kept}; nothing was made in its place. "
        "Check that TUNERY_HOME is right and every volume is mounted; if registry.db is lost, restore a backup, or run "
        f"{REBUILD} to make it again",
        code="registry_lost",
    )


def moves_after(connection: Connection, adapter: str, last: int) -> list[Move]:
    """The moves of an adapter's aliases that are newer than number `last`."""
    column = schema.alias_moves.c
    query = select(schema.alias_moves).where(column.adapter == adapter, column.id > last).order_by(column.id)
    return [Move(**row._mapping) for row in connection.execute(query)]


def _id(connection: Connection) -> str | None:
    registry_id: str | None = connection.scalar(select(schema.identity.c.id))
    return registry_id


def _versions(connection: Connection) -> list[Version]:
    return to_versions(connection, select(schema.versions))


def _last_numbers(connection: Connection) -> dict[str, int]:
    column = schema.adapters.c
    return {row.name: row.last_number for row in connection.execute(select(column.name, column.last_number))}


def _try(write: Callable[..., None], *arguments: object) -> None:
    """Write a manifest of something already committed; a failure is logged, and made good by the next collection."""
    try:
        write(*arguments)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("a manifest in blobs/manifests could not be written: %s", error)
