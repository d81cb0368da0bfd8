"""Owns the one way in to everything the registry keeps; the work is in the modules beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from tunery.registry import bases
from tunery.registry.errors import Conflict, NotFound, near
from tunery.registry.home import Home
from tunery.registry.names import PRODUCTION, Reference, check_adapter, parse_reference
from tunery.registry.records import AliasMove, Base, DataUse, Job, Version
from tunery.registry.storage import schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import Database
from tunery.registry.storage.disk import keep_room, no_room
from tunery.registry.storage.manifests import Manifests
from tunery.registry.storage.mirror import Mirror, check_empty, check_new
from tunery.registry.storage.rows import alias_map, to_job, to_versions
from tunery.registry.versions import aliases, publish, upkeep
from tunery.registry.versions.aliases import ANY, Expected
from tunery.registry.versions.export import export
from tunery.registry.versions.lineage import Ancestor, line_of, uses_of
from tunery.registry.versions.upkeep import Collected, Problem

__all__ = ["Registry"]


def _quiet(step: str) -> None:
    """Watch nothing."""


class Registry:
    """Versions, aliases, bases and jobs under one home.

    Safe to use from several threads and processes at once: SQLite's lock orders the writers.
    """

    def __init__(self, home: Home, *, clock: Callable[[], float] = time.time, scarce: bool = False) -> None:
        home.ensure()
        if scarce and no_room(home.root):
            home.reserve.unlink(missing_ok=True)
        self.home = home
        self.blobs = BlobStore(home.blobs, home.staging)
        manifests = Manifests(home.manifests)
        check_new(home, manifests, self.blobs)
        self._database = Database(
            home.database, on_create=lambda connection: check_empty(home, manifests, self.blobs), scarce=scarce
        )
        self._mirror = Mirror(self._database, manifests, self.blobs)
        self._mirror.introduce()
        if not scarce:
            keep_room(home.reserve)
        self._clock = clock

    @classmethod
    def open(cls, home: Home | None = None, *, clock: Callable[[], float] = time.time, scarce: bool = False) -> Self:
        """The registry of `home`, by default the one that `TUNERY_HOME` names; made when it is not there and nothing else is.

        `scarce` is for whoever frees space: on a full disk it uses the room that is kept for that, and needs no more than to read. Raises StorageFailed (registry_lost) where there is no database and `blobs/` holds something.
        """
        return cls(home or Home.from_env(), clock=clock, scarce=scarce)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def changes(self) -> int:
        """Differs from the last call's result when anybody committed anything in between."""
        return self._database.changes()

    # -- versions ---------------------------------------------------------------------------------------------------

    def publish(
        self,
        adapter: str,
        folder: Path,
        *,
        base: Base,
        method: str,
        manifest: dict[str, Any],
        metrics: dict[str, float],
        actor: str,
        alias: str | None = None,
        trust_base: bool = False,
        report: Path | None = None,
        watch: publish.Watch = _quiet,
    ) -> Version:
        """Store a PEFT folder as the adapter's next version and, if asked, point `alias` at it; all or nothing.

        `trust_base` takes an adapter whose configuration names another base than `base`; its shapes must fit all the same.
        `report` is a folder whose files go along under `report/` and are no part of the digest.
        """
        with self._database.read() as connection:
            self._mirror.check(connection)
        with self.blobs.lease() as lease:
            draft = publish.stage(
                self.blobs,
                folder,
                lease=lease,
                adapter=adapter,
                base=base,
                method=method,
                manifest=manifest,
                metrics=metrics,
                alias=alias,
                actor=actor,
                watch=watch,
                others=self.bases(),
                trust_base=trust_base,
                report=report,
            )
            return publish.commit(self._mirror, self.blobs, draft, at=self._clock(), watch=watch)

    def resolve(self, reference: str | Reference) -> Version:
        """The version a reference means now: its number, its alias, or production and else the newest."""
        wanted = parse_reference(reference) if isinstance(reference, str) else reference
        with self._database.read() as connection:
            number = wanted.number or self._pointed(connection, wanted)
            found = self._find(connection, wanted.adapter, number)
        if found is None:
            raise NotFound(f"{wanted} does not exist: {self._hint(wanted.adapter)}", code="model_not_found")
        return found

    def version(self, adapter: str, number: int) -> Version:
        """One version by number."""
        return self.resolve(Reference(check_adapter(adapter), number=number))

    def versions(self, adapter: str | None = None) -> list[Version]:
        """All versions of one adapter, or of all, oldest first."""
        found = schema.versions.c
        query = select(schema.versions).order_by(found.adapter, found.number)
        if adapter is not None:
            query = query.where(found.adapter == adapter)
        with self._database.read() as connection:
            return to_versions(connection, query)

    def adapters(self) -> list[str]:
        """Names of the adapters that have a version, sorted."""
        with self._database.read() as connection:
            return list(
                connection.scalars(select(schema.versions.c.adapter).distinct().order_by(schema.versions.c.adapter))
            )

    def latest(self) -> list[Version]:
        """What each adapter's bare name means now, by adapter."""
        found, alias = schema.versions.c, schema.aliases.c
        newest = select(found.adapter, func.max(found.number).label("number")).group_by(found.adapter).subquery()
        meant = func.coalesce(alias.number, newest.c.number)
        query = (
            select(schema.versions)
            .join(newest, newest.c.adapter == found.adapter)
            .outerjoin(schema.aliases, and_(alias.adapter == found.adapter, alias.alias == PRODUCTION))
            .where(found.number == meant)
            .order_by(found.adapter)
        )
        with self._database.read() as connection:
            return to_versions(connection, query)

    def by_digest(self, digest: str) -> Version:
        """The newest version with this digest, or with a digest that begins so (8 characters at least)."""
        found = schema.versions.c
        # A range, so that the index is used.
        begins = and_(found.digest >= digest, found.digest <= digest + "g")
        query = select(schema.versions).where(begins).order_by(found.created_at.desc(), found.number.desc()).limit(1)
        with self._database.read() as connection:
            versions = to_versions(connection, query) if len(digest) >= 8 else []
        if not versions:
            raise NotFound(f"no version has a digest that begins with {digest!r} (8 characters at least)")
        return versions[0]

    def lineage(self, version: Version) -> list[Ancestor]:
        """A version, what it was continued from, and so on back to the base; a parent is found by digest, not by name."""
        return line_of(self, version)

    def uses(self, sha256: str) -> list[DataUse]:
        """Which versions were made with the data file of this sha256, or of one that begins so (8 characters at least)."""
        with self._database.read() as connection:
            return uses_of(connection, sha256)

    def files(self, version: Version) -> dict[str, Path]:
        """Where each file of a version lies on disk."""
        return {entry.path: self.blobs.path(entry.sha256) for entry in version.files}

    def export(self, version: Version, folder: Path, *, include: Collection[str] | None = None) -> None:
        """Write a version's files into `folder`; see `export.export`."""
        export(self.blobs, version, folder, include=include)

    def remove(self, reference: str, *, actor: str, force: bool = False) -> Version:
        """Forget a version; its number is not used again. Refused while an alias points at it, unless forced."""
        version = self.resolve(reference)
        with self._mirror.write() as change:
            connection = change.connection
            pointing = [a for a, n in alias_map(connection, version.adapter).items() if n == version.number]
            if pointing and not force:
                raise Conflict(
                    f"{version.name} is what {', '.join(pointing)} points to: move it first, or force the removal",
                    code="version_in_use",
                )
            for alias in pointing:
                aliases.drop(
                    connection, version.adapter, alias, actor=actor, at=self._clock(), reason="version removed"
                )
            found = schema.versions.c
            connection.execute(
                delete(schema.versions).where(found.adapter == version.adapter, found.number == version.number)
            )
            change.removed(version.adapter, version.number)
            change.moved(version.adapter)
        return version

    # -- aliases ----------------------------------------------------------------------------------------------------

    def aliases(self, adapter: str) -> dict[str, int]:
        """Where each alias points."""
        with self._database.read() as connection:
            return alias_map(connection, check_adapter(adapter))

    def move_alias(
        self, adapter: str, alias: str, number: int, *, actor: str, expected: Expected = ANY, reason: str = ""
    ) -> AliasMove:
        """Point an alias at a version; see `aliases.move`."""
        check_adapter(adapter)
        with self._mirror.write() as change:
            moved = aliases.move(
                change.connection,
                adapter,
                alias,
                number,
                actor=actor,
                at=self._clock(),
                expected=expected,
                reason=reason,
            )
            change.moved(adapter)
        return moved

    def drop_alias(
        self, adapter: str, alias: str, *, actor: str, expected: Expected = ANY, reason: str = ""
    ) -> AliasMove:
        """Delete an alias."""
        with self._mirror.write() as change:
            moved = aliases.drop(
                change.connection,
                check_adapter(adapter),
                alias,
                actor=actor,
                at=self._clock(),
                expected=expected,
                reason=reason,
            )
            change.moved(adapter)
        return moved

    def rollback(
        self, adapter: str, alias: str = PRODUCTION, *, actor: str, expected: Expected = ANY, reason: str = "rollback"
    ) -> AliasMove:
        """Point an alias where it pointed before; itself a recorded move."""
        with self._mirror.write() as change:
            number = aliases.previous(change.connection, check_adapter(adapter), alias)
            moved = aliases.move(
                change.connection,
                adapter,
                alias,
                number,
                actor=actor,
                at=self._clock(),
                expected=expected,
                reason=reason,
                kind="rollback",
            )
            change.moved(adapter)
        return moved

    def history(self, adapter: str, alias: str | None = None) -> list[AliasMove]:
        """Every move of an adapter's aliases, oldest first."""
        with self._database.read() as connection:
            return aliases.history(connection, check_adapter(adapter), alias)

    # -- upkeep -----------------------------------------------------------------------------------------------------

    def verify(self, reference: str | None = None) -> list[Problem]:
        """Read one version's files and compare them with their digests; without one, those of all versions, bases and packed bases."""
        if reference is not None:
            return upkeep.verify(self.blobs, [self.resolve(reference)])
        return upkeep.verify_all(self.home, self.blobs, self._mirror.manifests, self.versions(), self.bases())

    def collect(self, *, older_than: float = 3600.0, dry_run: bool = False) -> Collected:
        """Remove what no version needs and is older than `older_than` seconds."""
        return upkeep.collect(
            self._database,
            self._mirror,
            self.blobs,
            self.home,
            now=self._clock(),
            older_than=older_than,
            dry_run=dry_run,
        )

    # -- bases ------------------------------------------------------------------------------------------------------

    def add_base(self, base: Base) -> Base:
        """Record a base; the same content again is the same base, another content under the name is refused."""
        with self._mirror.write() as change:
            return bases.add(change, base, self.home)

    def bases(self) -> list[Base]:
        """All bases by name."""
        with self._database.read() as connection:
            return bases.listed(connection, self.home)

    def base(self, name: str) -> Base:
        """A base by name, source or digest."""
        known = self.bases()
        for base in known:
            if name in (base.name, base.digest, base.source) or (len(name) >= 8 and base.digest.startswith(name)):
                return base
        raise NotFound(
            f"no base is called {name!r}: {near(name, [base.name for base in known])}", code="base_not_found"
        )

    # -- jobs -------------------------------------------------------------------------------------------------------

    def start_job(self, job_id: str, *, adapter: str, trainer: str) -> Job:
        """Record that a job runs."""
        now = self._clock()
        job = Job(id=job_id, adapter=adapter, trainer=trainer, state="running", created_at=now, updated_at=now)
        with self._database.write() as connection:
            connection.execute(
                insert(schema.jobs).values(
                    id=job_id, adapter=adapter, trainer=trainer, state="running", created_at=now, updated_at=now
                )
            )
        return job

    def update_job(self, job_id: str, *, state: str, version: int | None = None, error: str | None = None) -> Job:
        """Record how a job goes on."""
        with self._database.write() as connection:
            connection.execute(
                update(schema.jobs)
                .where(schema.jobs.c.id == job_id)
                .values(state=state, version=version, error=error, updated_at=self._clock())
            )
        return self.job(job_id)

    def job(self, job_id: str) -> Job:
        """A job by id."""
        with self._database.read() as connection:
            row = connection.execute(select(schema.jobs).where(schema.jobs.c.id == job_id)).first()
        if row is None:
            raise NotFound(f"no job has the id {job_id!r}: {near(job_id, [job.id for job in self.jobs()])}")
        return to_job(row)

    def jobs(self) -> list[Job]:
        """All jobs, newest first."""
        with self._database.read() as connection:
            return [
                to_job(r) for r in connection.execute(select(schema.jobs).order_by(schema.jobs.c.created_at.desc()))
            ]

    # -- inside -----------------------------------------------------------------------------------------------------

    def _pointed(self, connection: Connection, wanted: Reference) -> int | None:
        """The number behind an alias; without one, production's or else the newest version's."""
        pointing = alias_map(connection, wanted.adapter)
        if wanted.alias is not None:
            return pointing.get(wanted.alias)
        if PRODUCTION in pointing:
            return pointing[PRODUCTION]
        found = schema.versions.c
        return connection.scalar(
            select(found.number).where(found.adapter == wanted.adapter).order_by(found.number.desc()).limit(1)
        )

    def _find(self, connection: Connection, adapter: str, number: int | None) -> Version | None:
        found = schema.versions.c
        query = select(schema.versions).where(found.adapter == adapter, found.number == number)
        return next(iter(to_versions(connection, query)), None)

    def _hint(self, adapter: str) -> str:
        """What there is instead."""
        known = self.adapters()
        if adapter not in known:
            return near(adapter, known)
        numbers = [version.number for version in self.versions(adapter)]
        names = list(self.aliases(adapter))
        return f"{adapter} has the versions {numbers}" + (f" and the aliases {names}" if names else "")
