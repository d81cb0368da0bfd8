"""Share adapters with other tenants, and end that. Who has keys hears of it in every process within a second."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, insert, select

from tunery.registry import audit
from tunery.registry.errors import NotFound, near
from tunery.registry.names import check_adapter, tenant_of
from tunery.registry.sharing.share import EVERYBODY, Share, check_tenants
from tunery.registry.storage import schema, tenant_tables
from tunery.registry.storage.database import Database

__all__ = ["Sharing", "end"]

_share = tenant_tables.adapter_shares.c


class Sharing:
    """The shared adapters of one registry."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def all(self) -> list[Share]:
        """Every shared adapter, by name."""
        with self._database.read() as connection:
            return [
                _to_share(row)
                for row in connection.execute(select(tenant_tables.adapter_shares).order_by(_share.adapter))
            ]

    def get(self, adapter: str) -> Share | None:
        """With whom an adapter is shared, None where it is with nobody."""
        with self._database.read() as connection:
            return _find(connection, check_adapter(adapter))

    def share(
        self,
        adapter: str,
        tenants: Collection[str],
        *,
        actor: str,
        share_prefixes: bool | None = None,
        only: bool = False,
    ) -> Share:
        """Share an adapter with more tenants, or with `only` these; raise InvalidInput, or NotFound for the adapter.

        `share_prefixes` of None leaves that as it is, which is False at first.
        """
        wanted = check_tenants(check_adapter(adapter), tenants)
        with self._database.write() as connection:
            _require_adapter(connection, adapter)
            before = _find(connection, adapter)
            if before is not None and not only:
                wanted = check_tenants(adapter, (*before.tenants, *wanted))
            kept = before is not None and before.share_prefixes
            share = Share(
                adapter=adapter,
                tenants=wanted,
                share_prefixes=kept if share_prefixes is None else share_prefixes,
                shared_at=self._clock(),
                shared_by=actor,
            )
            _replace(connection, adapter, before, share, actor=actor, at=share.shared_at)
        return share

    def unshare(self, adapter: str, tenants: Collection[str] | None = None, *, actor: str) -> Share | None:
        """Share an adapter no more, or not with these tenants; returns what is left.

        One that is shared with all is no more with any, as there is nobody to name. Raise NotFound (not_shared).
        """
        with self._database.write() as connection:
            before = _find(connection, check_adapter(adapter))
            gone = set(tenants or (before.tenants if before else ()))
            if before is None or not gone <= set(before.tenants):
                shown = ", ".join(sorted(gone)) or "anybody"
                raise NotFound(f"{adapter} is not shared with {shown}", code="not_shared")
            left = tuple(tenant for tenant in before.tenants if tenant not in gone)
            share = msgspec.structs.replace(before, tenants=left) if left else None
            _replace(connection, adapter, before, share, actor=actor, at=self._clock())
        return share


def end(connection: Connection, adapter: str, *, actor: str, at: float) -> None:
    """Share an adapter no more, because its last version is removed: another of its name must not be shared unasked."""
    before = _find(connection, adapter)
    if before is not None:
        _replace(connection, adapter, before, None, actor=actor, at=at)


def _replace(
    connection: Connection, adapter: str, before: Share | None, after: Share | None, *, actor: str, at: float
) -> None:
    connection.execute(delete(tenant_tables.adapter_shares).where(_share.adapter == adapter))
    if after is not None:
        values = msgspec.structs.asdict(after) | {"tenants": list(after.tenants)}
        connection.execute(insert(tenant_tables.adapter_shares).values(**values))
    audit.record(
        connection,
        "adapter.unshare" if _is_less(before, after) else "adapter.share",
        adapter,
        at=at,
        tenant=tenant_of(adapter),
        actor=actor,
        before=_shown(before),
        after=_shown(after),
    )


def _is_less(before: Share | None, after: Share | None) -> bool:
    """Whether nobody gains anything by it."""
    if before is None or after is None:
        return after is None
    return EVERYBODY not in after.tenants and set(after.tenants) < set(before.tenants)


def _shown(share: Share | None) -> dict[str, Any] | None:
    return None if share is None else {"tenants": list(share.tenants), "share_prefixes": share.share_prefixes}


def _require_adapter(connection: Connection, adapter: str) -> None:
    names = set(connection.scalars(select(schema.versions.c.adapter).distinct()))
    if adapter not in names:
        # A tenant learns of no other's from the names that are suggested.
        names = {name for name in names if tenant_of(name) == tenant_of(adapter)}
        raise NotFound(f"there is no adapter {adapter!r}: {near(adapter, names)}", code="model_not_found")


def _find(connection: Connection, adapter: str) -> Share | None:
    row = connection.execute(select(tenant_tables.adapter_shares).where(_share.adapter == adapter)).first()
    return None if row is None else _to_share(row)


def _to_share(row: Row[tuple[object, ...]]) -> Share:
    fields = dict(row._mapping)
    return Share(**fields | {"tenants": tuple(fields["tenants"])})
