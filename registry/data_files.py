"""Uploaded files: stored as blobs by sha256, found by id, and kept while a job or batch needs them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, delete, insert, select, update

from tunery.registry import audit
from tunery.registry.audit.origin import SYSTEM, Origin, acting
from tunery.registry.errors import Conflict, NotFound, StorageFailed
from tunery.registry.jobs.table import ENDED
from tunery.registry.records import DataFile, FileEntry, Job
from tunery.registry.storage import schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import Database
from tunery.registry.storage.digest import file_digest
from tunery.registry.storage.mapping import to_data_file
from tunery.registry.usage.stored_bytes import check_room

__all__ = ["DataFiles", "find_file", "insert_file", "needed_blobs", "new_file"]


class DataFiles:
    """The uploaded files of all tenants. `tenant` of None means any."""

    def __init__(self, database: Database, blobs: BlobStore, *, clock: Callable[[], float]) -> None:
        self._database, self._blobs, self._clock = database, blobs, clock

    def add(
        self, source: Path, *, tenant: str, purpose: str, name: str, status: str = "uploaded",
        expires_after: float | None = None, limit: int = 0,
    ) -> DataFile:  # fmt: skip
        """Store a copy of `source`; raise StorageFailed when the disk does not take it, and LimitReached where the tenant
        would have more than `limit` bytes, which are all that it may have unless 0."""
        with self._blobs.lease() as lease:
            entry = self._blobs.put(source, name=name, lease=lease)
            file = new_file(
                entry, tenant=tenant, purpose=purpose, status=status, at=self._clock(), expires_after=expires_after
            )
            with self._database.write() as connection:
                check_room(connection, tenant, file.size, limit=limit)
                insert_file(connection, file)
        return file

    def add_result(self, source: Path, *, job: Job, name: str) -> None:
        """Store a result file of a job, unless it has one by now."""
        result = schema.job_files.c
        with self._blobs.lease() as lease:
            entry = self._blobs.put(source, name=name, lease=lease)
            with self._database.write() as connection:
                known = select(result.file).where(result.job == job.id, result.role == "result")
                if connection.scalar(known) is not None:
                    return
                now = self._clock()
                file = new_file(entry, tenant=job.tenant, purpose="fine-tune-results", status="processed", at=now)
                insert_file(connection, file)
                row = {"job": job.id, "file": file.id, "role": "result", "position": 0}
                connection.execute(insert(schema.job_files).values(**row))

    def results_of(self, job_id: str) -> list[str]:
        """Ids of a job's result files."""
        result = schema.job_files.c
        with self._database.read() as connection:
            query = select(result.file).where(result.job == job_id, result.role == "result")
            return list(connection.scalars(query.order_by(result.position)))

    def checked(self, file_id: str, *, status: str, details: str | None, findings: dict[str, Any] | None) -> DataFile:
        """Record what the data check found."""
        column = schema.data_files.c
        with self._database.write() as connection:
            values = {"status": status, "details": details, "findings": findings}
            connection.execute(update(schema.data_files).where(column.id == file_id).values(**values))
            return find_file(connection, file_id, None)

    def get(self, file_id: str, *, tenant: str | None = None) -> DataFile:
        """A file by id; raise NotFound."""
        with self._database.read() as connection:
            return find_file(connection, file_id, tenant)

    def findings(self, file_id: str) -> dict[str, Any] | None:
        """The whole report of a file's data check, None before it ran; raise NotFound."""
        column = schema.data_files.c
        with self._database.read() as connection:
            row = connection.execute(select(column.findings).where(column.id == file_id)).first()
        if row is None:
            raise _not_found(file_id)
        report: dict[str, Any] | None = row.findings
        return report

    def page(
        self, *, tenant: str | None, purpose: str | None, after: str | None, limit: int, ascending: bool = False
    ) -> tuple[list[DataFile], bool]:
        """Up to `limit` files by time, newest first unless `ascending`, and whether there are more."""
        column, query = schema.data_files.c, _query(tenant)
        if purpose is not None:
            query = query.where(column.purpose == purpose)
        with self._database.read() as connection:
            if after is not None:
                last = find_file(connection, after, tenant, param="after")
                key, bound = (column.created_at, column.id), (last.created_at, last.id)
                same = (key[0] == bound[0]) & (key[1] > bound[1] if ascending else key[1] < bound[1])
                query = query.where((key[0] > bound[0] if ascending else key[0] < bound[0]) | same)
            order = (column.created_at.asc(), column.id.asc()) if ascending else (
                column.created_at.desc(), column.id.desc()
            )  # fmt: skip
            files = [to_data_file(row) for row in connection.execute(query.order_by(*order).limit(limit + 1))]
        return files[:limit], len(files) > limit

    def delete(self, file_id: str, *, tenant: str | None = None) -> DataFile:
        """Forget a file; raise Conflict (file_in_use) while a job or batch that has not ended needs it."""
        job, used, batch = schema.jobs.c, schema.job_files.c, schema.batches.c
        with self._database.write() as connection:
            file = find_file(connection, file_id, tenant)
            jobs = (
                select(job.id)
                .join(schema.job_files, used.job == job.id)
                .where(used.file == file_id, used.role != "result", job.state.not_in(ENDED))
            )
            batches = select(batch.id).where(batch.input_file == file_id, batch.ended.is_(False))
            if needing := connection.scalars(jobs.union_all(batches)).all():
                raise Conflict(
                    f"{file_id} is needed by {', '.join(needing[:3])}; wait until that has ended, or cancel it",
                    code="file_in_use",
                )
            connection.execute(delete(schema.data_files).where(schema.data_files.c.id == file_id))
            known = {"sha256": file.sha256, "purpose": file.purpose}
            audit.record(connection, "file.delete", file_id, at=self._clock(), tenant=file.tenant, before=known)
        return file

    def expire(self) -> int:
        """Forget the files whose time is over and that nothing needs; returns how many."""
        with self._database.read() as connection:
            column = schema.data_files.c
            over = connection.scalars(select(column.id).where(column.expires_at < self._clock())).all()
        count = 0
        with acting(Origin(actor=SYSTEM)):
            for file_id in over:
                try:
                    self.delete(file_id)
                    count += 1
                except (Conflict, NotFound):
                    continue
        return count

    def path(self, file: DataFile) -> Path:
        """Where the file's bytes are stored."""
        return self._blobs.path(file.sha256)

    def present_path(self, file: DataFile) -> Path:
        """Where the file's bytes are stored; raise StorageFailed where they are missing."""
        path = self.path(file)
        if not path.exists():
            raise StorageFailed(f"the bytes of {file.id} are missing; upload it again")
        return path

    def whole_path(self, file: DataFile) -> Path:
        """As present_path, but reads the file and raises StorageFailed (file_damaged) where its bytes have changed."""
        path = self.present_path(file)
        if file_digest(path)[0] != file.sha256:
            raise StorageFailed(
                f"the bytes of {file.id} are damaged: they no longer match their digest; upload it again, or restore "
                "the server's store from a backup",
                code="file_damaged",
            )
        return path


def new_file(
    entry: FileEntry, *, tenant: str, purpose: str, status: str, at: float, expires_after: float | None = None
) -> DataFile:
    """A stored file's record, not yet in the table."""
    return DataFile(
        id=f"file-{uuid.uuid4().hex[:24]}",
        tenant=tenant,
        purpose=purpose,
        name=entry.path,
        sha256=entry.sha256,
        size=entry.size,
        status=status,
        created_at=at,
        expires_at=None if expires_after is None else at + expires_after,
    )


def insert_file(connection: Connection, file: DataFile) -> None:
    """Record a file; within a write transaction, while the blob's lease is held."""
    connection.execute(insert(schema.data_files).values(**msgspec.structs.asdict(file)))


def needed_blobs(connection: Connection) -> set[str]:
    """The sha256 of every uploaded file."""
    return set(connection.scalars(select(schema.data_files.c.sha256).distinct()))


def find_file(connection: Connection, file_id: str, tenant: str | None, *, param: str = "id") -> DataFile:
    """A file by id, of any tenant if None; raise NotFound, which names `param`."""
    row = connection.execute(_query(tenant).where(schema.data_files.c.id == file_id)).first()
    if row is None:
        raise _not_found(file_id, param)
    return to_data_file(row)


def _not_found(file_id: str, param: str = "id") -> NotFound:
    """In OpenAI's words."""
    return NotFound(f"No such File object: {file_id[:100]}", param=param)


def _query(tenant: str | None) -> Select[Any]:
    query = select(*(column for column in schema.data_files.c if column.name != "findings"))
    return query if tenant is None else query.where(schema.data_files.c.tenant == tenant)
