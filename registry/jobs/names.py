"""Names of versions in OpenAI's form, `ft:base:tenant:suffix:id`, that queued jobs gave them."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from tunery.registry.records import Version
from tunery.registry.storage import schema
from tunery.registry.storage.mapping import to_versions

__all__ = ["add", "list_all", "named_versions"]


def add(connection: Connection, name: str, version: Version, *, job: str, at: float) -> None:
    """Name a version."""
    place = {"adapter": version.adapter, "number": version.number, "job": job, "created_at": at}
    connection.execute(insert(schema.model_names).values(name=name, **place))


def list_all(connection: Connection) -> dict[str, tuple[str, int]]:
    """The adapter and number behind every name, oldest first."""
    column = schema.model_names.c
    rows = connection.execute(select(column.name, column.adapter, column.number).order_by(column.created_at))
    return {row.name: (row.adapter, row.number) for row in rows}


def named_versions(connection: Connection) -> dict[str, Version]:
    """The version behind every name, oldest first."""
    name, version = schema.model_names.c, schema.versions.c
    same = (name.adapter == version.adapter) & (name.number == version.number)
    query = select(schema.versions).where(select(name.name).where(same).exists())
    versions = {(each.adapter, each.number): each for each in to_versions(connection, query)}
    return {name: versions[place] for name, place in list_all(connection).items()}
