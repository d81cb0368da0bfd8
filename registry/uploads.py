"""Files that come in parts: the parts wait in a folder of the home until they are joined, given up or too old.

A part's bytes are on the disk before its row is there. Its file appears under the write lock, and only while the upload
is pending, so whatever is in the folder of another upload is left over and can go at any time.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from sqlalchemy import Connection, insert, select, update

from tunery.registry.data_files import find_file, insert_file, new_file
from tunery.registry.errors import Conflict, InvalidInput, NotFound, StorageFailed, disk_code
from tunery.registry.records import DataFile, FileEntry, Upload, UploadPart
from tunery.registry.storage import schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import Database
from tunery.registry.storage.disk import sync
from tunery.registry.storage.mapping import to_part, to_upload
from tunery.registry.usage.stored_bytes import check_room

__all__ = ["LIFETIME", "MAX_PARTS", "Uploads"]

LIFETIME = 3600.0
"""Seconds from the creation of an upload to its end."""
MAX_PARTS = 10_000
_CHUNK = 1 << 20


class Uploads:
    """The uploads of all tenants; their parts are under `folder`."""

    def __init__(self, database: Database, blobs: BlobStore, folder: Path, *, clock: Callable[[], float]) -> None:
        self._database, self._blobs, self._folder, self._clock = database, blobs, folder, clock

    def create(
        self, *, tenant: str, purpose: str, name: str, mime_type: str, size: int, file_expires_after: float | None
    ) -> Upload:
        """Begin an upload of `size` bytes."""
        now = self._clock()
        upload = Upload(
            id=f"upload_{uuid.uuid4().hex[:24]}",
            tenant=tenant,
            purpose=purpose,
            name=name,
            mime_type=mime_type,
            size=size,
            status="pending",
            created_at=now,
            expires_at=now + LIFETIME,
            file_expires_after=file_expires_after,
        )
        with self._database.write() as connection:
            connection.execute(insert(schema.uploads).values(**msgspec.structs.asdict(upload)))
        return upload

    def get(self, upload_id: str, *, tenant: str) -> Upload:
        """An upload by id; raise NotFound."""
        with self._database.read() as connection:
            return self._find(connection, upload_id, tenant)

    def add_part(self, upload_id: str, source: Path, *, tenant: str) -> UploadPart:
        """Move `source`, a file on the same file system, into an upload.

        Raises NotFound, Conflict (upload_ended), InvalidInput where the parts are too many or would be too long, and
        StorageFailed.
        """
        part = UploadPart(
            id=f"part_{uuid.uuid4().hex[:24]}", upload=upload_id, size=source.stat().st_size, created_at=self._clock()
        )
        folder = self._folder / upload_id
        try:
            sync(source)
            with self._database.write() as connection:
                upload = self._pending(connection, upload_id, tenant)
                _check_room(connection, upload, part)
                folder.mkdir(parents=True, exist_ok=True)
                source.rename(folder / part.id)
                sync(folder)
                connection.execute(insert(schema.upload_parts).values(**msgspec.structs.asdict(part)))
        except OSError as error:
            if isinstance(error, StorageFailed):
                raise
            raise StorageFailed(
                f"the part could not be stored: {error.strerror}; send it again", code=disk_code(error)
            ) from error
        return part

    def complete(
        self,
        upload_id: str,
        part_ids: Sequence[str],
        *,
        tenant: str,
        status: str,
        md5: str | None = None,
        limit: int = 0,
    ) -> tuple[Upload, DataFile, bool]:
        """Join parts, in this order, to a file with this status; returns whether it was made now.

        The same parts once more are answered with the same file. Raises NotFound, InvalidInput for parts that are not
        the upload's or have other bytes than announced or another MD5, and Conflict (upload_ended), and
        LimitReached as DataFiles.add.
        """
        with self._database.read() as connection:
            done = self._completed(connection, upload_id, part_ids, tenant)
            if done is None:
                upload = self._pending(connection, upload_id, tenant)
                _check_parts(connection, upload, part_ids)
                check_room(connection, tenant, upload.size, limit=limit)
        if done is not None:
            return self._again(done, md5)
        with self._blobs.lease() as lease:
            try:
                entry = self._join(upload, part_ids, md5, lease)
            except OSError as error:
                # The parts are gone where another call has ended the upload meanwhile.
                with self._database.read() as connection:
                    done = self._completed(connection, upload_id, part_ids, tenant)
                    if done is None:
                        self._pending(connection, upload_id, tenant)
                if done is not None:
                    return self._again(done, md5)
                raise StorageFailed(f"the parts of {upload.id} cannot be read or joined: {error}") from error
            with self._database.write() as connection:
                if (done := self._completed(connection, upload_id, part_ids, tenant)) is not None:
                    return done
                self._pending(connection, upload_id, tenant)
                file = new_file(
                    entry,
                    tenant=tenant,
                    purpose=upload.purpose,
                    status=status,
                    at=self._clock(),
                    expires_after=upload.file_expires_after,
                )
                check_room(connection, tenant, file.size, limit=limit)
                insert_file(connection, file)
                ended = _end(connection, upload_id, "completed", parts=list(part_ids), file=file.id)
        self._remove(upload_id)
        return ended, file, True

    def _join(self, upload: Upload, part_ids: Sequence[str], md5: str | None, lease: Path) -> FileEntry:
        """Store the parts as one blob."""
        paths = [self._folder / upload.id / part for part in part_ids]
        _check_md5(paths, md5)
        return self._blobs.put(*paths, name=upload.name, lease=lease)

    def _again(self, done: tuple[Upload, DataFile, bool], md5: str | None) -> tuple[Upload, DataFile, bool]:
        """The answer to a completion that was done before; the file is there still, unless the disk lost it."""
        try:
            _check_md5([self._blobs.path(done[1].sha256)], md5)
        except OSError as error:
            raise StorageFailed(f"the bytes of {done[1].id} cannot be read: {error.strerror}") from error
        return done

    def cancel(self, upload_id: str, *, tenant: str) -> Upload:
        """Give an upload up; raise NotFound, or Conflict (upload_ended)."""
        with self._database.write() as connection:
            self._pending(connection, upload_id, tenant)
            upload = _end(connection, upload_id, "cancelled")
        self._remove(upload_id)
        return upload

    def expire(self) -> int:
        """End the uploads whose time is over, and delete the parts of all that are not pending; how many ended."""
        column, now = schema.uploads.c, self._clock()
        with self._database.read() as connection:
            over = column.status == "pending", column.expires_at <= now
            due = connection.scalar(select(column.id).where(*over).limit(1)) is not None
        ended = 0
        if due:
            with self._database.write() as connection:
                ended = connection.execute(update(schema.uploads).where(*over).values(status="expired")).rowcount
        for upload_id in self.leftovers():
            self._remove(upload_id)
        return ended

    def leftovers(self) -> list[str]:
        """The uploads that are not pending and whose folder is there."""
        names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
        # After the folders: one that is made meanwhile has a row already.
        with self._database.read() as connection:
            column = schema.uploads.c
            pending = set(connection.scalars(select(column.id).where(column.status == "pending")))
        return [name for name in names if name not in pending]

    def _remove(self, upload_id: str) -> None:
        shutil.rmtree(self._folder / upload_id, ignore_errors=True)

    def _find(self, connection: Connection, upload_id: str, tenant: str) -> Upload:
        """An upload, as expired if its time is over."""
        column = schema.uploads.c
        query = select(schema.uploads).where(column.id == upload_id, column.tenant == tenant)
        row = connection.execute(query).first()
        if row is None:
            raise NotFound(f"No such Upload object: {upload_id}", param="id")
        upload = to_upload(row)
        late = upload.status == "pending" and upload.expires_at <= self._clock()
        return msgspec.structs.replace(upload, status="expired") if late else upload

    def _pending(self, connection: Connection, upload_id: str, tenant: str) -> Upload:
        upload = self._find(connection, upload_id, tenant)
        if upload.status != "pending":
            raise Conflict(f"{upload_id} is {upload.status}; create another upload", code="upload_ended")
        return upload

    def _completed(
        self, connection: Connection, upload_id: str, part_ids: Sequence[str], tenant: str
    ) -> tuple[Upload, DataFile, bool] | None:
        """The answer to a completion that was done before, with the same parts."""
        upload = self._find(connection, upload_id, tenant)
        if upload.status != "completed" or upload.parts != tuple(part_ids) or upload.file is None:
            return None
        return upload, find_file(connection, upload.file, tenant), False


def _check_room(connection: Connection, upload: Upload, part: UploadPart) -> None:
    """Raise InvalidInput where a part would make an upload too long."""
    sizes = list(
        connection.scalars(select(schema.upload_parts.c.size).where(schema.upload_parts.c.upload == upload.id))
    )
    if len(sizes) >= MAX_PARTS:
        raise InvalidInput(f"{upload.id} has {len(sizes)} parts, which is the limit", param="data")
    if part.size > upload.size:
        raise InvalidInput(
            f"the part has {part.size} bytes, and the whole of {upload.id} only {upload.size}", param="data"
        )
    # A part may be sent twice where its answer was lost, but not without end.
    if sum(sizes) + part.size > 2 * upload.size:
        raise InvalidInput(f"the parts of {upload.id} have more than twice its {upload.size} bytes", param="data")


def _check_parts(connection: Connection, upload: Upload, part_ids: Sequence[str]) -> None:
    """Raise InvalidInput unless these are different parts of the upload with all its bytes."""
    query = select(schema.upload_parts).where(schema.upload_parts.c.upload == upload.id)
    known = {part.id: part for part in map(to_part, connection.execute(query))}
    if unknown := [part for part in part_ids if part not in known]:
        raise InvalidInput(f"{unknown[0][:100]!r} is no part of {upload.id}", param="part_ids")
    if len(set(part_ids)) < len(part_ids):
        raise InvalidInput("a part is named twice", param="part_ids")
    total = sum(known[part].size for part in part_ids)
    if total != upload.size:
        raise InvalidInput(
            f"the parts have {total} bytes together; {upload.id} was created for {upload.size}", param="part_ids"
        )


def _end(connection: Connection, upload_id: str, status: str, **values: object) -> Upload:
    column = schema.uploads.c
    connection.execute(update(schema.uploads).where(column.id == upload_id).values(status=status, **values))
    return to_upload(connection.execute(select(schema.uploads).where(column.id == upload_id)).one())


def _check_md5(paths: Sequence[Path], wanted: str | None) -> None:
    """Raise InvalidInput unless the bytes of the files have this MD5, or none is wanted."""
    if wanted is not None and _md5(paths) != wanted.lower():
        raise InvalidInput("the bytes of the parts do not have this md5; send them again", param="md5")


def _md5(paths: Sequence[Path]) -> str:
    """OpenAI's check of the bytes; not for security."""
    digest = hashlib.md5(usedforsecurity=False)
    for path in paths:
        with path.open("rb") as reader:
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
