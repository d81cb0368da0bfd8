"""Read the audit log; entries are written by `record` alone."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Select, or_, select

from tunery.registry.audit.entry import ACTIONS, AuditEntry
from tunery.registry.errors import UnknownName
from tunery.registry.storage import tenant_tables
from tunery.registry.storage.database import Database

__all__ = ["AuditFilter", "AuditLog"]

_entry = tenant_tables.audit_log.c
KINDS = tuple(dict.fromkeys(action.partition(".")[0] for action in ACTIONS))


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries to read: all that are None or as given. Times are Unix times in seconds, `until` excluded.

    `action` is one such as `key.create`, or the kind of what was changed, such as `key`.
    """

    tenant: str | None = None
    actor: str | None = None
    action: str | None = None
    since: float | None = None
    until: float | None = None


class AuditLog:
    """The audit log of one registry."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(self, wanted: AuditFilter, *, before: int | None = None, limit: int) -> tuple[list[AuditEntry], bool]:
        """Up to `limit` entries, newest first, from the one before the entry with the id `before` on; and whether there are
        more. Raise UnknownName for an action that there is not."""
        query = _query(wanted).order_by(_entry.id.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(_entry.id < before)
        with self._database.read() as connection:
            entries = [AuditEntry(**row._mapping) for row in connection.execute(query)]
        return entries[:limit], len(entries) > limit


def _query(wanted: AuditFilter) -> Select[Any]:
    query = select(tenant_tables.audit_log)
    if wanted.tenant is not None:
        query = query.where(_entry.tenant == wanted.tenant)
    if wanted.actor is not None:
        query = query.where(_entry.actor == wanted.actor)
    if wanted.action is not None:
        if wanted.action not in (*ACTIONS, *KINDS):
            raise UnknownName("action", wanted.action, (*ACTIONS, *KINDS), param="action")
        query = query.where(or_(_entry.action == wanted.action, _entry.action.startswith(f"{wanted.action}.")))
    if wanted.since is not None:
        query = query.where(_entry.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(_entry.at < wanted.until)
    return query
