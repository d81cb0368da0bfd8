"""The keys of all tenants: create, list, rotate and revoke them."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Collection
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, insert, select, update

from tunery.registry import audit
from tunery.registry.errors import Conflict, NotFound
from tunery.registry.keys.api_key import ApiKey, new_key, new_token
from tunery.registry.keys.tenants import Tenant, count_tenants
from tunery.registry.storage import tenant_tables
from tunery.registry.storage.database import Database

__all__ = ["Keys"]

_key = tenant_tables.api_keys.c


class Keys:
    """The keys of one registry. What creates a key also returns its token, which cannot be had again."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def create(
        self,
        *,
        tenant: str,
        scopes: Collection[str],
        actor: str,
        label: str = "",
        adapters: Collection[str] = (),
        seconds: float | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key, good for so many seconds or, with None, until it is revoked; raise InvalidInput."""
        now = self._clock()
        key, token = new_key(
            tenant=tenant,
            scopes=scopes,
            adapters=adapters,
            label=label,
            created_at=now,
            created_by=actor,
            expires_at=_end(now, seconds),
        )
        with self._database.write() as connection:
            _add(connection, key)
            _record(connection, "key.create", key, actor=actor, at=now, after=_shown(key))
        return key, token

    def rotate(self, key_id: str, *, actor: str, overlap: float) -> tuple[ApiKey, str]:
        """A key with the same rights and the same end in place of an active one, which is good for `overlap` seconds more.

        Raise NotFound, or Conflict (key_ended).
        """
        now = self._clock()
        end = _end(now, max(overlap, 0.0))
        new_id, secret_hash, token = new_token()
        with self._database.write() as connection:
            old = _find(connection, key_id)
            if (state := old.state(now)) != "active" or old.replaced_by is not None:
                why = f"was replaced by {old.replaced_by}" if old.replaced_by is not None else f"is {state}"
                raise Conflict(f"the key {key_id} {why}; create a new one", code="key_ended")
            key = msgspec.structs.replace(
                old, id=new_id, secret_hash=secret_hash, created_at=now, created_by=actor
            )  # fmt: skip
            _add(connection, key)
            ends = [at for at in (end, old.expires_at) if at is not None]
            values = {"replaced_by": new_id, "expires_at": min(ends)}
            connection.execute(update(tenant_tables.api_keys).where(_key.id == key_id).values(**values))
            ending = {"id": new_id, "old_key_ends": values["expires_at"]}
            _record(connection, "key.rotate", old, actor=actor, at=now, before={"id": key_id}, after=ending)
        return key, token

    def revoke(self, key_id: str, *, actor: str | None = None) -> ApiKey:
        """End a key now, for good; raise NotFound. One that was revoked before stays as it is.

        `actor` is None for whoever sent the request that is being answered, else this machine's user.
        """
        with self._database.write() as connection:
            key = _find(connection, key_id)
            if key.revoked_at is None:
                now = self._clock()
                key = msgspec.structs.replace(key, revoked_at=now)
                connection.execute(update(tenant_tables.api_keys).where(_key.id == key_id).values(revoked_at=now))
                _record(connection, "key.revoke", key, actor=actor, at=now, before=_shown(key))
        return key

    def list(self, *, tenant: str | None = None) -> list[ApiKey]:
        """All keys, or those of a tenant, oldest first."""
        query = select(tenant_tables.api_keys).order_by(_key.created_at, _key.id)
        with self._database.read() as connection:
            found = [_key_of(row) for row in connection.execute(query)]
        return [key for key in found if tenant is None or key.tenant == tenant]

    def tenants(self) -> builtins.list[Tenant]:
        """Every tenant that has anything, by name, and how much that is."""
        with self._database.read() as connection:
            return count_tenants(connection, at=self._clock())


def _add(connection: Connection, key: ApiKey) -> None:
    values = msgspec.structs.asdict(key) | {"scopes": list(key.scopes), "adapters": list(key.adapters)}
    connection.execute(insert(tenant_tables.api_keys).values(**values))


def _record(
    connection: Connection,
    action: audit.Action,
    key: ApiKey,
    *,
    actor: str | None,
    at: float,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    audit.record(connection, action, key.id, at=at, tenant=key.tenant, actor=actor, before=before, after=after)


def _shown(key: ApiKey) -> dict[str, Any]:
    """What the audit log says of a key: its rights, and nothing of its secret."""
    fields = ("label", "scopes", "adapters", "expires_at")
    return {name: msgspec.to_builtins(getattr(key, name)) for name in fields}


def _find(connection: Connection, key_id: str) -> ApiKey:
    row = connection.execute(select(tenant_tables.api_keys).where(_key.id == key_id)).first()
    if row is None:
        raise NotFound(f"there is no key {key_id[:40]!r}; see tunery keys list", code="key_not_found")
    return _key_of(row)


def _key_of(row: Row[tuple[object, ...]]) -> ApiKey:
    fields = dict(row._mapping)
    return ApiKey(**fields | {name: tuple(fields[name]) for name in ("scopes", "adapters")})


def _end(now: float, seconds: float | None) -> float | None:
    return None if seconds is None else now + seconds
