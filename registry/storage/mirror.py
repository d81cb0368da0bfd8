"""Write what the database says to the manifests beside the blobs, and refuse to change blobs that belong to another database.

A database can be lost, replaced by an older backup, or meet the blobs of another home after a volume was mounted in the wrong place.
Nothing is then published or collected: what is there may be all that is left.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, func, insert, select

from tunery.registry.errors import StorageFailed, TuneryError
from tunery.registry.home import Home
from tunery.registry.records import Base, Version
from tunery.registry.storage import schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import Database
from tunery.registry.storage.disk import disk_code, room_or_not
from tunery.registry.storage.manifests import Manifests, Move
from tunery.registry.storage.rows import to_base, to_versions

__all__ = ["Change", "Mirror", "check_empty", "check_new", "moves_after"]

log = logging.getLogger("tunery.registry")

REBUILD = "`tunery registry rebuild`"


class Change:
    """A transaction whose outcome goes to the manifests as well: name what it changes before it ends."""

    def __init__(self, connection: Connection, manifests: Manifests) -> None:
        self.connection = connection
        self._manifests = manifests
        self._pending: list[Path] = []
        self._removed: list[tuple[str, int]] = []
        self._moves: dict[str, list[Move]] = {}

    def published(self, version: Version) -> None:
        """A version is new."""
        self._pending.append(self._manifests.stage(version))

    def removed(self, adapter: str, number: int) -> None:
        """A version is gone."""
        self._removed.append((adapter, number))

    def moved(self, adapter: str) -> None:
        """Aliases of an adapter were moved: all moves that are not written down yet are due, were it the last one's or a lost one's."""
        self._moves[adapter] = moves_after(self.connection, adapter, self._manifests.last_move(adapter))

    def added(self, base: Base) -> None:
        """A base is new, or lies elsewhere."""
        self._manifests.write_base(base)

    def settle(self) -> None:
        """The transaction has ended well; what cannot be written now is written by the next collection or rebuild."""
        for pending in self._pending:
            _try(self._manifests.settle, pending)
        for adapter, number in self._removed:
            _try(self._manifests.retire, adapter, number)
        for adapter, moves in self._moves.items():
            _try(self._manifests.add_moves, adapter, moves)

    def discard(self) -> None:
        """The transaction has not ended well."""
        for pending in self._pending:
            pending.unlink(missing_ok=True)


class Mirror:
    """The database and its manifests as one."""

    def __init__(self, database: Database, manifests: Manifests, blobs: BlobStore) -> None:
        self._database, self._blobs = database, blobs
        self.manifests = manifests

    @contextmanager
    def write(self, *, watch: Callable[[str], None] = lambda step: None) -> Iterator[Change]:
        """A transaction; `watch` is told of the moments before and after its end."""
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

    def introduce(self) -> None:
        """Give a registry that has none its id, and write the manifests of a registry from before there were any."""
        with self._database.read() as connection:
            if _id(connection) is not None:
                return
        with room_or_not(), self._database.write() as connection:
            if _id(connection) is None:
                own = self._plausible(connection)
                new = (self.manifests.id() if own else None) or uuid.uuid4().hex
                connection.execute(insert(schema.identity).values(id=new))
                if own:
                    self.check(connection)
                    self.sync(connection)

    def check(self, connection: Connection) -> None:
        """Raise StorageFailed unless the blobs are this database's, and none of them is one it has lost sight of."""
        ours, theirs = _id(connection), self.manifests.id()
        if (ours is None or theirs is None) and self._plausible(connection):
            if ours is not None:
                _try(self.manifests.claim, ours)
        elif theirs is None:
            raise StorageFailed(
                "the files in blobs/ are not those that registry.db names; nothing was changed: look whether the right volume is "
                f"mounted there. If registry.db was lost and made anew, put back a backup of it, or use {REBUILD}",
                code="registry_mismatch",
            )
        elif theirs != ours:
            raise StorageFailed(
                f"registry.db is of the registry {ours}, and blobs/ belongs to {theirs}; nothing was changed: put them together with "
                f"their own, or move registry.db away and use {REBUILD}",
                code="registry_mismatch",
            )

    def check_known(self, connection: Connection) -> None:
        """Raise StorageFailed where the manifests know of versions that the database does not: it was lost, or is older than they are."""
        last = _last_numbers(connection)
        unknown = [
            f"{adapter}@{number}" for adapter, number in self.manifests.numbers() if number > last.get(adapter, 0)
        ]
        if unknown:
            raise self.behind(unknown)

    def behind(self, versions: list[str]) -> StorageFailed:
        """The error for a database that is older than the manifests."""
        shown = ", ".join(versions[:5]) + (f" and {len(versions) - 5} more" if len(versions) > 5 else "")
        return StorageFailed(
            f"registry.db does not know {shown}, which the manifests in blobs/ tell of: it is older than they are; nothing was "
            f"changed: {REBUILD} takes them in",
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


def check_new(home: Home, manifests: Manifests, blobs: BlobStore) -> None:
    """Before a database would be made: raise StorageFailed where it would be in the place of a lost one."""
    if not home.database.exists():
        kept = _kept(manifests, blobs)
        # Asked again: whoever makes a registry meanwhile makes its database first.
        if kept and not home.database.exists():
            raise _lost(home, kept)


def check_empty(home: Home, manifests: Manifests, blobs: BlobStore) -> None:
    """While a database is being made: the same, where its file is there and empty."""
    if kept := _kept(manifests, blobs):
        raise _lost(home, kept)


def _kept(manifests: Manifests, blobs: BlobStore) -> str:
    """What there is that only a database can tell the use of."""
    versions, files = sum(1 for _ in manifests.numbers()), blobs.count()
    return f"{files} files and the manifests of {versions} versions" if files or versions else ""


def _lost(home: Home, kept: str) -> StorageFailed:
    return StorageFailed(
        f"{home.database} is missing or empty, and {home.blobs} holds {kept}; nothing was made in its place. Look whether TUNERY_HOME "
        f"is right and every volume is mounted; if registry.db is lost, put back a backup, or let {REBUILD} make it again",
        code="registry_lost",
    )


def moves_after(connection: Connection, adapter: str, last: int) -> list[Move]:
    """The moves of an adapter's aliases that are newer than number `last`."""
    found = schema.alias_moves.c
    query = select(schema.alias_moves).where(found.adapter == adapter, found.id > last).order_by(found.id)
    return [Move(**row._mapping) for row in connection.execute(query)]


def _id(connection: Connection) -> str | None:
    found: str | None = connection.scalar(select(schema.identity.c.id))
    return found


def _versions(connection: Connection) -> list[Version]:
    return to_versions(connection, select(schema.versions))


def _last_numbers(connection: Connection) -> dict[str, int]:
    found = schema.adapters.c
    return {row.name: row.last_number for row in connection.execute(select(found.name, found.last_number))}


def _try(write: Callable[..., None], *arguments: object) -> None:
    """What was committed stays so, whatever the disk says of its manifest."""
    try:
        write(*arguments)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("a manifest in blobs/manifests could not be written: %s", error)
