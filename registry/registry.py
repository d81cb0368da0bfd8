"""The way in to everything the registry keeps: one transaction per call, around the functions of other modules."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from tunery.registry import audit, bases
from tunery.registry.audit.log import AuditLog
from tunery.registry.batches.batches import Batches
from tunery.registry.checkpoints import Checkpoints
from tunery.registry.data_files import DataFiles
from tunery.registry.evals.store import EvalStore
from tunery.registry.home import Home
from tunery.registry.jobs import table as jobs
from tunery.registry.jobs.job_queue import JobQueue
from tunery.registry.jobs.success import Success, succeed
from tunery.registry.keys.keys import Keys
from tunery.registry.limits.counters import LimitCounters
from tunery.registry.limits.overrides import LimitOverrides
from tunery.registry.names import PRODUCTION, Reference, check_adapter, parse_reference, tenant_of
from tunery.registry.records import AliasMove, Base, DataUse, Job, NewVersion, Version
from tunery.registry.responses import Responses
from tunery.registry.sharing.sharing import Sharing
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import BUSY_SECONDS, Database
from tunery.registry.storage.disk import keep_room, no_room
from tunery.registry.storage.manifests import Manifests
from tunery.registry.storage.mapping import alias_list, alias_map
from tunery.registry.storage.mirror import Mirror, refuse_empty_database, refuse_missing_database
from tunery.registry.uploads import Uploads
from tunery.registry.usage.usage import Usage
from tunery.registry.versions import aliases, lookup, publish, removal, upkeep
from tunery.registry.versions.aliases import ANY, Expected, MoveNote
from tunery.registry.versions.export import export
from tunery.registry.versions.lineage import Ancestor, line_of, uses_of
from tunery.registry.versions.upkeep import Collected, Problem
from tunery.registry.webhooks.outbox import Outbox

__all__ = ["Registry"]


def _ignore(step: str) -> None:
    """Watch nothing."""


class Registry:
    """Versions, aliases, bases and jobs under one home.

    Safe to use from several threads and processes at once: SQLite's lock orders the writers.
    """

    def __init__(
        self,
        home: Home,
        *,
        clock: Callable[[], float] = time.time,
        scarce: bool = False,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        home.ensure()
        if scarce and no_room(home.root):
            home.reserve.unlink(missing_ok=True)
        self.home = home
        self.blobs = BlobStore(home.blobs, home.staging)
        manifests = Manifests(home.manifests)
        refuse_missing_database(home, manifests, self.blobs)
        self._database = Database(
            home.database,
            on_create=lambda _: refuse_empty_database(home, manifests, self.blobs),
            scarce=scarce,
            busy_seconds=busy_seconds,
        )
        self._mirror = Mirror(self._database, manifests, self.blobs)
        self._mirror.initialise()
        if not scarce:
            keep_room(home.reserve)
        self._clock = clock
        self.queue = JobQueue(self._database, clock=clock)
        self.data_files = DataFiles(self._database, self.blobs, clock=clock)
        self.checkpoints = Checkpoints(self._database, self.blobs, clock=clock)
        self.responses = Responses(self._database, clock=clock)
        self.uploads = Uploads(self._database, self.blobs, home.uploads, clock=clock)
        self.batches = Batches(self._database, self.blobs, home.batches, clock=clock)
        self.webhooks = Outbox(self._database, clock=clock)
        self.keys = Keys(self._database, clock=clock)
        self.usage = Usage(self._database, clock=clock)
        self.limits = LimitOverrides(self._database, clock=clock)
        self.limit_counters = LimitCounters(self._database)
        self.sharing = Sharing(self._database, clock=clock)
        self.audit = AuditLog(self._database)
        self.evals = EvalStore(self._database, self.blobs, clock=clock)

    @classmethod
    def open(
        cls,
        home: Home | None = None,
        *,
        clock: Callable[[], float] = time.time,
        scarce: bool = False,
        busy_seconds: float = BUSY_SECONDS,
    ) -> Self:
        """Open the registry of `home`, by default the one that `TUNERY_HOME` names; make it where nothing is there yet.

        `scarce` is for commands that free space: on a full disk they use the room that is kept in reserve for them.
        A change waits for `busy_seconds` while another process holds the lock, and raises StorageBusy then. Raise StorageFailed (registry_lost) where there are blobs and no database.
        """
        return cls(home or Home.from_env(), clock=clock, scarce=scarce, busy_seconds=busy_seconds)

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
        """A number that differs from the last call's when anybody has changed something in between; usage does not count."""
        return self._database.changes()

    @property
    def database(self) -> Database:
        """The database itself, for those who watch it."""
        return self._database

    # -- versions ---------------------------------------------------------------------------------------------------

    def publish(self, new: NewVersion, *, job: Success | None = None, watch: publish.Watch = _ignore) -> Version:
        """Store a PEFT folder as the adapter's next version and, if asked, point an alias at it; all or nothing.

        The success of the `job` that made it is part of that. Raise ArtifactRefused for a folder that does not fit its
        base exactly, StorageFailed where the disk does not take it, and Conflict (claim_lost) where the job is another
        worker's by now.
        """
        with self._database.read() as connection:
            self._mirror.require_same_registry(connection)
        with self.blobs.lease() as lease:
            draft = publish.stage(self.blobs, new, lease=lease, watch=watch, others=self.bases())
            now = self._clock()
            ending = None if job is None else partial(succeed, job, at=now)
            return publish.commit(self._mirror, self.blobs, draft, at=now, watch=watch, ending=ending)

    def resolve(self, reference: str | Reference) -> Version:
        """The version that a reference means now: its number, its alias, or else `production` and else the newest.

        Raise InvalidInput for text that is not a reference, and NotFound (model_not_found).
        """
        parsed = parse_reference(reference) if isinstance(reference, str) else reference
        with self._database.read() as connection:
            return lookup.resolve(connection, parsed)

    def version(self, adapter: str, number: int) -> Version:
        """One version by number; raise NotFound."""
        return self.resolve(Reference(check_adapter(adapter), number=number))

    def versions(self, adapter: str | None = None) -> list[Version]:
        """All versions of one adapter, or of all adapters, oldest first."""
        with self._database.read() as connection:
            return lookup.versions_of(connection, adapter)

    def adapters(self) -> list[str]:
        """Names of the adapters that have a version, sorted."""
        with self._database.read() as connection:
            return lookup.adapter_names(connection)

    def latest(self) -> list[Version]:
        """What each adapter's bare name means now, by adapter."""
        with self._database.read() as connection:
            return lookup.current_versions(connection)

    def by_digest(self, digest: str) -> Version:
        """The newest version whose digest is or starts with this (8 characters at least); raise NotFound."""
        with self._database.read() as connection:
            return lookup.by_digest(connection, digest)

    def lineage(self, version: Version) -> list[Ancestor]:
        """A version, the version it was continued from, and so on back to the base; parents are looked up by digest."""
        with self._database.read() as connection:
            return line_of(connection, version)

    def uses(self, sha256: str) -> list[DataUse]:
        """Which versions were trained on the data file whose sha256 is or starts with this (8 characters at least)."""
        with self._database.read() as connection:
            return uses_of(connection, sha256)

    def files(self, version: Version) -> dict[str, Path]:
        """Where each file of a version is stored."""
        return {entry.path: self.blobs.path(entry.sha256) for entry in version.files}

    def export(self, version: Version, folder: Path, *, include: Collection[str] | None = None) -> None:
        """Copy a version's files into `folder`; see `versions.export.export`."""
        export(self.blobs, version, folder, include=include)

    def remove(self, reference: str, *, actor: str, force: bool = False) -> Version:
        """Forget a version; see `versions.removal.remove`."""
        version = self.resolve(reference)
        with self._mirror.write() as change:
            removal.remove(change, version, actor=actor, at=self._clock(), force=force)
        return version

    # -- aliases ----------------------------------------------------------------------------------------------------

    def aliases(self, adapter: str) -> dict[str, int]:
        """The version number that each alias of an adapter points to."""
        with self._database.read() as connection:
            return alias_map(connection, check_adapter(adapter))

    def all_aliases(self, *, limit: int) -> list[tuple[str, str, int]]:
        """Adapter, alias and version number of up to `limit` aliases, `production` and `canary` first."""
        with self._database.read() as connection:
            return alias_list(connection, limit=limit)

    def move_alias(
        self, adapter: str, alias: str, number: int, *, actor: str, expected: Expected = ANY, reason: str = ""
    ) -> AliasMove:
        """Point an alias at a version; see `versions.aliases.move`."""
        check_adapter(adapter)
        with self._mirror.write() as change:
            note = MoveNote(actor=actor, at=self._clock(), reason=reason)
            moved = aliases.move(change.connection, adapter, alias, number, note, expected=expected)
            change.moved(adapter)
        return moved

    def drop_alias(
        self, adapter: str, alias: str, *, actor: str, expected: Expected = ANY, reason: str = ""
    ) -> AliasMove:
        """Delete an alias; see `versions.aliases.drop`."""
        check_adapter(adapter)
        with self._mirror.write() as change:
            note = MoveNote(actor=actor, at=self._clock(), reason=reason)
            moved = aliases.drop(change.connection, adapter, alias, note, expected=expected)
            change.moved(adapter)
        return moved

    def rollback(
        self, adapter: str, alias: str = PRODUCTION, *, actor: str, expected: Expected = ANY, reason: str = "rollback"
    ) -> AliasMove:
        """Point an alias where it pointed before, itself a recorded move; see `versions.aliases.previous`."""
        check_adapter(adapter)
        with self._mirror.write() as change:
            number = aliases.previous(change.connection, adapter, alias)
            note = MoveNote(actor=actor, at=self._clock(), reason=reason, kind="rollback")
            moved = aliases.move(change.connection, adapter, alias, number, note, expected=expected)
            change.moved(adapter)
        return moved

    def history(self, adapter: str, alias: str | None = None) -> list[AliasMove]:
        """Every move of an adapter's aliases, or of one of them, oldest first."""
        with self._database.read() as connection:
            return aliases.history(connection, check_adapter(adapter), alias)

    # -- upkeep -----------------------------------------------------------------------------------------------------

    def verify(self, reference: str | None = None) -> list[Problem]:
        """Compare a version's files, or else all versions', bases' and packed bases', with their digests."""
        if reference is not None:
            return upkeep.verify(self.blobs, [self.resolve(reference)])
        return upkeep.verify_all(self.home, self.blobs, self._mirror.manifests, self.versions(), self.bases())

    def collect(self, *, older_than: float = 3600.0, dry_run: bool = False) -> Collected:
        """Remove what no version needs and was last written more than `older_than` seconds ago."""
        return upkeep.collect(
            self._database, self._mirror, self.blobs, self.home,
            now=self._clock(), older_than=older_than, dry_run=dry_run,
        )  # fmt: skip

    # -- bases ------------------------------------------------------------------------------------------------------

    def add_base(self, base: Base) -> Base:
        """Record a base, unless it is known; raise Conflict (base_exists) for a name that is in use."""
        with self._mirror.write() as change:
            return bases.add(change, base, self.home, at=self._clock())

    def bases(self) -> list[Base]:
        """All bases by name."""
        with self._database.read() as connection:
            return bases.list_all(connection, self.home)

    def base(self, name: str) -> Base:
        """A base by name, source or digest; raise NotFound (base_not_found)."""
        with self._database.read() as connection:
            return bases.find(connection, name, self.home)

    # -- jobs -------------------------------------------------------------------------------------------------------

    def start_job(self, job_id: str, *, adapter: str, trainer: str) -> Job:
        """Record that a job runs."""
        now = self._clock()
        job = Job(id=job_id, adapter=adapter, trainer=trainer, state="running", created_at=now, updated_at=now)
        with self._database.write() as connection:
            jobs.add(connection, job)
            made = {"adapter": adapter, "trainer": trainer}
            audit.record(connection, "job.create", job_id, at=now, tenant=tenant_of(adapter), after=made)
        return job

    def update_job(
        self, job_id: str, *, state: str, version: int | None = None, error: str | None = None, code: str | None = None
    ) -> Job:
        """Record a job's new state; raise NotFound."""
        with self._database.write() as connection:
            return jobs.set_state(connection, job_id, state, version=version, error=error, code=code, at=self._clock())

    def job(self, job_id: str) -> Job:
        """A job by id; raise NotFound."""
        with self._database.read() as connection:
            return jobs.find(connection, job_id)

    def jobs(self) -> list[Job]:
        """All jobs, newest first."""
        with self._database.read() as connection:
            return jobs.list_all(connection)
