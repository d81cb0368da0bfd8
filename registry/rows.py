"""Owns turning table rows into records."""

from __future__ import annotations

from sqlalchemy import Connection, Row, select

from tunery.registry import schema
from tunery.registry.records import AliasMove, Base, FileEntry, Job, Version

__all__ = ["alias_map", "to_base", "to_job", "to_move", "to_version"]


def to_version(connection: Connection, row: Row[tuple[object, ...]]) -> Version:
    """A version with its files and aliases."""
    found = schema.files.c
    entries = connection.execute(
        select(found.path, found.sha256, found.size)
        .where(found.adapter == row.adapter, found.number == row.number)
        .order_by(found.path)
    )
    pointing = [alias for alias, number in alias_map(connection, row.adapter).items() if number == row.number]
    return Version(
        adapter=row.adapter,
        number=row.number,
        digest=row.digest,
        base=row.base,
        base_digest=row.base_digest,
        method=row.method,
        files=tuple(FileEntry(*entry) for entry in entries),
        manifest=row.manifest,
        metrics=row.metrics,
        created_at=row.created_at,
        aliases=tuple(pointing),
    )


def alias_map(connection: Connection, adapter: str) -> dict[str, int]:
    """An adapter's aliases, by name."""
    found = schema.aliases.c
    rows = connection.execute(select(found.alias, found.number).where(found.adapter == adapter).order_by(found.alias))
    return {row.alias: row.number for row in rows}


def to_base(row: Row[tuple[object, ...]]) -> Base:
    """A base."""
    return Base(**row._mapping)


def to_move(row: Row[tuple[object, ...]]) -> AliasMove:
    """A move of an alias."""
    return AliasMove(**{name: value for name, value in row._mapping.items() if name != "id"})


def to_job(row: Row[tuple[object, ...]]) -> Job:
    """A job."""
    return Job(**row._mapping)
