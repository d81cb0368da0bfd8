"""The keys of all tenants: create, list, rotate and revoke them."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec
from sqlalchemy import Connection, Row, insert, select, update

from tunery.registry.errors import Conflict, NotFound
from tunery.registry.keys.api_key import ApiKey, new_key, new_token
from tunery.registry.storage import schema
from tunery.registry.storage.database import Database

__all__ = ["Keys"]

_key = schema.api_keys.c


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
            connection.execute(update(schema.api_keys).where(_key.id == key_id).values(**values))
        return key, token

    def revoke(self, key_id: str) -> ApiKey:
        """End a key now, for good; raise NotFound. One that was revoked before stays as it is."""
        with self._database.write() as connection:
            key = _find(connection, key_id)
            if key.revoked_at is None:
                key = msgspec.structs.replace(key, revoked_at=self._clock())
                connection.execute(
                    update(schema.api_keys).where(_key.id == key_id).values(revoked_at=key.revoked_at)
                )  # fmt: skip
        return key

    def list(self, *, tenant: str | None = None) -> list[ApiKey]:
        """All keys, or those of a tenant, oldest first."""
        query = select(schema.api_keys).order_by(_key.created_at, _key.id)
        with self._database.read() as connection:
            found = [_key_of(row) for row in connection.execute(query)]
        return [key for key in found if tenant is None or key.tenant == tenant]


def _add(connection: Connection, key: ApiKey) -> None:
    values = msgspec.structs.asdict(key) | {"scopes": list(key.scopes), "adapters": list(key.adapters)}
    connection.execute(insert(schema.api_keys).values(**values))


def _find(connection: Connection, key_id: str) -> ApiKey:
    row = connection.execute(select(schema.api_keys).where(_key.id == key_id)).first()
    if row is None:
        raise NotFound(f"there is no key {key_id[:40]!r}; see tunery keys list", code="key_not_found")
    return _key_of(row)


def _key_of(row: Row[tuple[object, ...]]) -> ApiKey:
    fields = dict(row._mapping)
    return ApiKey(**fields | {name: tuple(fields[name]) for name in ("scopes", "adapters")})


def _end(now: float, seconds: float | None) -> float | None:
    return None if seconds is None else now + seconds
