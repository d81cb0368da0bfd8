"""Limits of tenants and of single keys that differ from the configured ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import msgspec
from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert as upsert

from tunery.registry.configuration.limits import Limits
from tunery.registry.errors import NotFound, UnknownName
from tunery.registry.keys.api_key import check_tenant
from tunery.registry.storage import tenant_tables
from tunery.registry.storage.database import Database
from tunery.registry.values import read_value

__all__ = ["TENANT_ONLY", "LimitOverrides", "Override"]

TENANT_ONLY = frozenset({"queue_share", "storage_bytes"})
"""Limits that a single key cannot have: places and bytes belong to its tenant."""
_TYPES = {field.name: field.type for field in msgspec.structs.fields(Limits)}
_column = tenant_tables.limit_overrides.c


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """The limits that were set for a tenant or, with `key`, for one of its keys; 0 is no limit."""

    tenant: str
    key: str = ""
    values: dict[str, float]

    def over(self, limits: Limits) -> Limits:
        """`limits` with these in their place."""
        known = {name: value for name, value in self.values.items() if name in _TYPES}
        return msgspec.convert(msgspec.structs.asdict(limits) | known, Limits, strict=False)


class LimitOverrides:
    """The limits that were set, of one registry."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def all(self) -> dict[tuple[str, str], Override]:
        """All limits that were set, by tenant and key."""
        with self._database.read() as connection:
            rows = connection.execute(select(tenant_tables.limit_overrides).order_by(_column.tenant, _column.key)).all()
        found: dict[tuple[str, str], Override] = {}
        for row in rows:
            override = found.setdefault((row.tenant, row.key), Override(tenant=row.tenant, key=row.key, values={}))
            override.values[row.name] = row.value
        return found

    def set(self, tenant: str, values: Mapping[str, object], *, actor: str, key: str = "") -> None:
        """Set limits; others of the tenant or key stay.

        Raises UnknownName, InvalidInput for a tenant or a value that cannot be, and NotFound for a key that is not the
        tenant's.
        """
        check_tenant(tenant)
        now = self._clock()
        rows = [
            {
                "tenant": tenant,
                "key": key,
                "name": name,
                "value": _read(name, value, key),
                "changed_at": now,
                "actor": actor,
            }
            for name, value in sorted(values.items())
        ]
        statement = upsert(tenant_tables.limit_overrides)
        changed = {name: statement.excluded[name] for name in ("value", "changed_at", "actor")}
        with self._database.write() as connection:
            _require_key(connection, tenant, key)
            if rows:
                statement = statement.on_conflict_do_update(index_elements=["tenant", "key", "name"], set_=changed)
                connection.execute(statement, rows)

    def clear(self, tenant: str, names: Collection[str] = (), *, key: str = "") -> int:
        """Forget limits that were set, all without `names`; returns how many. Raises UnknownName."""
        for name in names:
            _known(name)
        where = [_column.tenant == tenant, _column.key == key, *([_column.name.in_(names)] if names else [])]
        with self._database.write() as connection:
            return connection.execute(delete(tenant_tables.limit_overrides).where(*where)).rowcount


def _known(name: str) -> None:
    if name not in _TYPES:
        raise UnknownName("limit", name, _TYPES, param="limit")


def _read(name: str, value: object, key: str) -> float:
    _known(name)
    if key and name in TENANT_ONLY:
        raise UnknownName("limit of a key", name, set(_TYPES) - TENANT_ONLY, param=name)
    return float(read_value(name, value, _TYPES[name]))


def _require_key(connection: Connection, tenant: str, key: str) -> None:
    column = tenant_tables.api_keys.c
    if key and connection.scalar(select(column.id).where(column.id == key, column.tenant == tenant)) is None:
        raise NotFound(
            f"{tenant} has no key {key[:40]!r}; see tunery keys list --tenant {tenant}", code="key_not_found"
        )
