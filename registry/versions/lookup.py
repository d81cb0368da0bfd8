"""Find versions: by reference, by digest, by adapter."""

from __future__ import annotations

from sqlalchemy import Connection, and_, func, select

from tunery.registry.errors import NotFound, near
from tunery.registry.names import PRODUCTION, Reference
from tunery.registry.records import Version
from tunery.registry.storage import schema
from tunery.registry.storage.mapping import alias_map, to_versions

__all__ = ["adapter_names", "by_digest", "current_versions", "resolve", "versions_of"]

_SHORTEST_DIGEST = 8


def resolve(connection: Connection, reference: Reference) -> Version:
    """The version that a reference means now; raise NotFound (model_not_found), naming what there is instead."""
    number = reference.number or _number(connection, reference)
    version = schema.versions.c
    query = select(schema.versions).where(version.adapter == reference.adapter, version.number == number)
    matches = to_versions(connection, query)
    if not matches:
        hint = _alternatives(connection, reference.adapter)
        raise NotFound(f"{reference} does not exist: {hint}", code="model_not_found")
    return matches[0]


def by_digest(connection: Connection, digest: str) -> Version:
    """The newest version with this digest, or with a digest that starts with it (8 characters at least)."""
    version = schema.versions.c
    # A range rather than LIKE, so that the index is used.
    prefixed = and_(version.digest >= digest, version.digest <= digest + "g")
    query = select(schema.versions).where(prefixed).order_by(version.created_at.desc(), version.number.desc()).limit(1)
    matches = to_versions(connection, query) if len(digest) >= _SHORTEST_DIGEST else []
    if not matches:
        raise NotFound(
            f"no version has a digest that starts with {digest!r} (write {_SHORTEST_DIGEST} characters at least)"
        )
    return matches[0]


def versions_of(connection: Connection, adapter: str | None = None) -> list[Version]:
    """All versions of one adapter, or of all adapters, oldest first."""
    version = schema.versions.c
    query = select(schema.versions).order_by(version.adapter, version.number)
    return to_versions(connection, query if adapter is None else query.where(version.adapter == adapter))


def adapter_names(connection: Connection) -> list[str]:
    """Names of the adapters that have a version, sorted."""
    adapter = schema.versions.c.adapter
    return list(connection.scalars(select(adapter).distinct().order_by(adapter)))


def current_versions(connection: Connection) -> list[Version]:
    """What each adapter's bare name means now (`production`, else the newest version), by adapter."""
    version, alias = schema.versions.c, schema.aliases.c
    newest = select(version.adapter, func.max(version.number).label("number")).group_by(version.adapter).subquery()
    current = func.coalesce(alias.number, newest.c.number)
    query = (
        select(schema.versions)
        .join(newest, newest.c.adapter == version.adapter)
        .outerjoin(schema.aliases, and_(alias.adapter == version.adapter, alias.alias == PRODUCTION))
        .where(version.number == current)
        .order_by(version.adapter)
    )
    return to_versions(connection, query)


def _number(connection: Connection, reference: Reference) -> int | None:
    """The number behind an alias; for a bare name that of `production`, or else of the newest version."""
    aliases = alias_map(connection, reference.adapter)
    if reference.alias is not None:
        return aliases.get(reference.alias)
    if PRODUCTION in aliases:
        return aliases[PRODUCTION]
    version = schema.versions.c
    newest: int | None = connection.scalar(select(func.max(version.number)).where(version.adapter == reference.adapter))
    return newest


def _alternatives(connection: Connection, adapter: str) -> str:
    names = adapter_names(connection)
    if adapter not in names:
        return near(adapter, names)
    version = schema.versions.c
    query = select(version.number).where(version.adapter == adapter).order_by(version.number)
    numbers, aliases = list(connection.scalars(query)), list(alias_map(connection, adapter))
    return f"{adapter} has the versions {numbers}" + (f" and the aliases {aliases}" if aliases else "")
