"""Map table rows to records."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, Subquery, and_, select

from tunery.registry.records import (
    AliasMove,
    Base,
    Batch,
    BatchCounts,
    Checkpoint,
    DataFile,
    FileEntry,
    Job,
    JobRequest,
    StoredEvent,
    StoredResponse,
    Upload,
    UploadPart,
    Version,
)
from tunery.registry.storage import schema

__all__ = [
    "alias_list",
    "alias_map",
    "to_base",
    "to_checkpoint",
    "to_batch",
    "to_data_file",
    "to_event",
    "to_job",
    "to_move",
    "to_response",
    "to_part",
    "to_upload",
    "to_versions",
]

_Key = tuple[str, int]


def to_versions(connection: Connection, query: Select[Any]) -> list[Version]:
    """The versions that a query selects, in its order; takes three queries, however many versions there are."""
    version = schema.versions.c
    wanted = query.with_only_columns(version.adapter, version.number).subquery()
    entries = _files(connection, wanted)
    pointing = _pointing(connection, wanted)
    return [
        Version(
            adapter=row.adapter,
            number=row.number,
            digest=row.digest,
            base=row.base,
            base_digest=row.base_digest,
            method=row.method,
            files=tuple(entries.get((row.adapter, row.number), ())),
            manifest=row.manifest,
            metrics=row.metrics,
            created_at=row.created_at,
            aliases=tuple(pointing.get((row.adapter, row.number), ())),
        )
        for row in connection.execute(query)
    ]


def _files(connection: Connection, wanted: Subquery) -> dict[_Key, list[FileEntry]]:
    file = schema.files.c
    same = and_(file.adapter == wanted.c.adapter, file.number == wanted.c.number)
    query = select(file.adapter, file.number, file.path, file.sha256, file.size).join(wanted, same).order_by(file.path)
    entries: dict[_Key, list[FileEntry]] = {}
    for row in connection.execute(query):
        entries.setdefault((row.adapter, row.number), []).append(FileEntry(row.path, row.sha256, row.size))
    return entries


def _pointing(connection: Connection, wanted: Subquery) -> dict[_Key, list[str]]:
    alias = schema.aliases.c
    same = and_(alias.adapter == wanted.c.adapter, alias.number == wanted.c.number)
    query = select(alias.adapter, alias.number, alias.alias).join(wanted, same).order_by(alias.alias)
    names: dict[_Key, list[str]] = {}
    for row in connection.execute(query):
        names.setdefault((row.adapter, row.number), []).append(row.alias)
    return names


def alias_list(connection: Connection, *, limit: int) -> list[tuple[str, str, int]]:
    """Adapter, alias and number of up to `limit` aliases; the usual ones, `production` and `canary`, come first."""
    alias = schema.aliases.c
    usual = alias.alias.in_(("production", "canary"))
    query = select(alias.adapter, alias.alias, alias.number).order_by(usual.desc(), alias.adapter, alias.alias)
    return [(row.adapter, row.alias, row.number) for row in connection.execute(query.limit(limit))]


def alias_map(connection: Connection, adapter: str) -> dict[str, int]:
    """The version number that each alias of an adapter points to, by alias."""
    alias = schema.aliases.c
    rows = connection.execute(select(alias.alias, alias.number).where(alias.adapter == adapter).order_by(alias.alias))
    return {row.alias: row.number for row in rows}


def to_base(row: Row[tuple[object, ...]]) -> Base:
    """A row of `bases` as a record; its path as stored."""
    return Base(**row._mapping)


def to_move(row: Row[tuple[object, ...]]) -> AliasMove:
    """A row of `alias_moves` as a record."""
    return AliasMove(**{name: value for name, value in row._mapping.items() if name != "id"})


def to_job(row: Row[tuple[object, ...]]) -> Job:
    """A row of `jobs` as a record."""
    fields = dict(row._mapping)
    return Job(**fields | {"request": msgspec.convert(fields["request"], JobRequest | None)})


def to_event(row: Row[tuple[object, ...]]) -> StoredEvent:
    """A row of `job_events` as a record."""
    return StoredEvent(**row._mapping)


def to_data_file(row: Row[tuple[object, ...]]) -> DataFile:
    """A row of `data_files` as a record."""
    return DataFile(**row._mapping)


def to_checkpoint(row: Row[tuple[object, ...]]) -> Checkpoint:
    """A row of `checkpoints` as a record."""
    fields = dict(row._mapping)
    return Checkpoint(**fields | {"files": msgspec.convert(fields["files"], tuple[FileEntry, ...])})


def to_response(row: Row[tuple[object, ...]]) -> StoredResponse:
    """A row of `responses` as a record."""
    return StoredResponse(**row._mapping)


def to_upload(row: Row[tuple[object, ...]]) -> Upload:
    """A row of `uploads` as a record."""
    fields = dict(row._mapping)
    return Upload(**fields | {"parts": msgspec.convert(fields["parts"], tuple[str, ...] | None)})


def to_part(row: Row[tuple[object, ...]]) -> UploadPart:
    """A row of `upload_parts` as a record."""
    return UploadPart(**row._mapping)


def to_batch(row: Row[tuple[object, ...]]) -> Batch:
    """A row of `batches` as a record."""
    fields = dict(row._mapping)
    errors = msgspec.convert(fields["errors"], tuple[dict[str, Any], ...] | None)
    adapters = msgspec.convert(fields["adapters"], tuple[str, ...] | None)
    counts = msgspec.convert(fields["counts"], BatchCounts)
    return Batch(**fields | {"counts": counts, "errors": errors, "adapters": adapters})
