"""The way in to queued jobs: one transaction per call, around the functions of `queue` and `history`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, insert, update

from tunery.registry import audit
from tunery.registry.jobs import counts, history, names, queue, table
from tunery.registry.jobs.counts import JobCounts
from tunery.registry.jobs.history import Note
from tunery.registry.jobs.limits import JobLimits, check_jobs
from tunery.registry.jobs.queue import Claim, ClaimLimits, Wanted
from tunery.registry.jobs.table import Filter
from tunery.registry.names import tenant_of
from tunery.registry.records import Job, JobRequest, StoredEvent, Version
from tunery.registry.storage import schema
from tunery.registry.storage.database import Database

__all__ = ["LEASE_SECONDS", "JobQueue", "new_id"]

LEASE_SECONDS = 30.0
"""Seconds after the last heartbeat until another worker may claim a job."""


class JobQueue:
    """Jobs that wait for a worker, run in one, or did. Safe to use from several threads and processes at once."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    # -- for those who submit ------------------------------------------------------------------------------------------

    def submit(
        self,
        request: JobRequest,
        *,
        tenant: str,
        priority: int = 0,
        details: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
        notes: Sequence[Note] = (),
        job_id: str | None = None,
        limits: JobLimits | None = None,
    ) -> Job:
        """Queue a job; with an idempotency key that the tenant has used before, that job is returned instead.

        `notes` are the first events of its history. Raises Conflict: file_not_found where a file was deleted since the
        request was checked, idempotency_key_reused for a key that was used with another body. Raises LimitReached.
        """
        now = self._clock()
        job = Job(
            id=job_id or new_id(),
            adapter=request.adapter,
            trainer=request.trainer,
            state="queued",
            created_at=now,
            updated_at=now,
            tenant=tenant,
            request=request,
            details=details,
            priority=priority,
        )
        with self._database.write() as connection:
            queue.require_files(connection, request)
            queued, new = queue.submit(connection, job, idempotency_key=idempotency_key)
            if new:
                _name_files(connection, queued)
                history.append(connection, queued.id, notes, at=now)
                check_jobs(connection, tenant, limits or JobLimits())
                made = {"adapter": job.adapter, "trainer": job.trainer, "alias": request.alias}
                audit.record(
                    connection, "job.create", job.id, at=now, tenant=tenant, actor=request.actor or None, after=made
                )
        return queued

    def request(self, job_id: str, wanted: Wanted, *, why: str = "") -> Job:
        """Ask a job to pause or to stop; raise NotFound, or Conflict (job_ended, job_finishing). `why` is shown among
        its events."""
        now = self._clock()
        with self._database.write() as connection:
            before = table.find(connection, job_id)
            after = queue.request(connection, job_id, wanted, at=now)
            if before.wanted != wanted:
                notes = [Note(level="warning", kind="warning", message=why)] if why else []
                history.append(connection, job_id, notes, at=now)
                _record(connection, "job.pause" if wanted == "pause" else "job.cancel", before, after, at=now)
        return after

    def resume(self, job_id: str, *, limits: JobLimits | None = None) -> Job:
        """Queue a job again that was paused or has failed; raise NotFound, Conflict (not_paused, file_not_found), or
        LimitReached."""
        now = self._clock()
        with self._database.write() as connection:
            before = table.find(connection, job_id)
            after = queue.resume(connection, job_id, at=now)
            check_jobs(connection, after.tenant, limits or JobLimits())
            _record(connection, "job.resume", before, after, at=now)
        return after

    def running(self) -> list[Job]:
        """All jobs that run."""
        with self._database.read() as connection:
            return table.list_running(connection)

    def page(self, wanted: Filter, *, limit: int) -> tuple[list[Job], bool]:
        """Up to `limit` jobs, newest first, and whether there are more."""
        with self._database.read() as connection:
            return table.page(connection, wanted, limit=limit)

    def events_after(self, job_id: str, number: int, *, limit: int = 500) -> list[StoredEvent]:
        """Events of a job that follow event `number`, oldest first."""
        with self._database.read() as connection:
            return history.after(connection, job_id, number, limit=limit)

    def events_before(self, job_id: str, number: int | None, *, limit: int) -> tuple[list[StoredEvent], bool]:
        """Events of a job before event `number`, newest first, and whether there are more."""
        with self._database.read() as connection:
            return history.before(connection, job_id, number, limit=limit)

    def counts(self) -> JobCounts:
        """Jobs by state, and how long the oldest one has waited."""
        with self._database.read() as connection:
            return counts.count(connection, at=self._clock())

    # -- for workers ---------------------------------------------------------------------------------------------------

    def claim(self, owner: str, *, limits: ClaimLimits | None = None, lease: float = LEASE_SECONDS) -> Job | None:
        """Claim the next job, or None when there is none for this worker."""
        with self._database.write() as connection:
            return queue.claim(connection, owner=owner, at=self._clock(), lease=lease, limits=limits or ClaimLimits())

    def beat(self, claim: Claim, *, lease: float = LEASE_SECONDS) -> str | None:
        """Renew a claim; returns what the job is asked to do. Raises Conflict (claim_lost)."""
        with self._database.write() as connection:
            return queue.beat(connection, claim, at=self._clock(), lease=lease)

    def report(self, claim: Claim, notes: Sequence[Note], *, progress: dict[str, Any] | None = None) -> None:
        """Add to a claimed job's history, and record how far it is; raise Conflict (claim_lost)."""
        now = self._clock()
        with self._database.write() as connection:
            job = queue.require_claim(connection, claim)
            history.append(connection, claim.job, notes, at=now)
            if progress is not None:
                merged = (job.progress or {}) | progress | ({"crashes": 0} if "step" in progress else {})
                column = schema.jobs.c
                connection.execute(
                    update(schema.jobs).where(column.id == claim.job).values(progress=merged, updated_at=now)
                )

    def release(self, claim: Claim, *, waiting: str | None = None, crashed: bool = False) -> Job:
        """Give a claimed job back to the queue, or end one whose process `crashed` too often; raise Conflict
        (claim_lost)."""
        with self._database.write() as connection:
            return queue.release(connection, claim, at=self._clock(), waiting=waiting, crashed=crashed)

    def reserved(self, owner: str) -> dict[str, int]:
        """The bytes that each running job of a worker was quoted to need; 0 before its quote."""
        with self._database.read() as connection:
            return queue.reserved(connection, owner)

    def finish(
        self, claim: Claim, state: str, *, error: str | None = None, code: str | None = None, notes: Sequence[Note] = ()
    ) -> Job:
        """Record that a claimed job ended without a version; raise Conflict (claim_lost)."""
        now = self._clock()
        with self._database.write() as connection:
            queue.require_claim(connection, claim)
            history.append(connection, claim.job, notes, at=now)
            return table.set_state(connection, claim.job, state, version=None, error=error, code=code, at=now)

    # -- names of models -----------------------------------------------------------------------------------------------

    def names(self) -> dict[str, tuple[str, int]]:
        """The adapter and number of the version behind every name in OpenAI's form, oldest first."""
        with self._database.read() as connection:
            return names.list_all(connection)

    def named_versions(self) -> dict[str, Version]:
        """The version behind every name in OpenAI's form, oldest first."""
        with self._database.read() as connection:
            return names.named_versions(connection)


def new_id() -> str:
    """A job's id, in OpenAI's form."""
    return f"ftjob-{uuid.uuid4().hex[:24]}"


def _record(connection: Connection, action: audit.Action, before: Job, after: Job, *, at: float) -> None:
    tenant = before.tenant or tenant_of(before.adapter)
    states: list[dict[str, Any]] = [{"state": job.state} for job in (before, after)]
    audit.record(connection, action, before.id, at=at, tenant=tenant, before=states[0], after=states[1])


def _name_files(connection: Connection, job: Job) -> None:
    """Record which files a job needs."""
    request = job.request
    if request is None:
        return
    rows = [{"job": job.id, "file": file, "role": "train", "position": i} for i, file in enumerate(request.data)]
    if request.validation:
        rows.append({"job": job.id, "file": request.validation, "role": "held-out", "position": 0})
    connection.execute(insert(schema.job_files), rows)
