"""The usage of all tenants: records that are only added, and their sums by the hour, written in one transaction.

Sums are kept for good, records for some days. Neither counts as a change that anybody waits for: see `Database.write`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Integer, cast, delete, func, insert, literal, select
from sqlalchemy.dialects.sqlite import insert as upsert

from tunery.registry.storage import tenant_tables
from tunery.registry.storage.database import Database
from tunery.registry.usage.records import TRAINING, UsageQuery, UsageRecord, UsageSum

__all__ = ["HOUR", "MonthTotals", "Usage"]

HOUR = 3600
_SUMS = ("input_tokens", "cached_tokens", "output_tokens", "milliseconds")
_FIELDS = ("tenant", "key", "model", "digest", "endpoint", "batch")
_record, _hour = tenant_tables.usage_records.c, tenant_tables.usage_hours.c


class MonthTotals(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of a span by tenant and key, as far as the record with this number."""

    tokens: dict[tuple[str, str], int]
    number: int


class Usage:
    """The usage that one registry keeps. Safe to use from several threads and processes at once."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def add(self, records: Sequence[UsageRecord]) -> None:
        """Add records, all or none; raise StorageFailed."""
        if not records:
            return
        # In one order for all writers, whatever the order of their requests.
        rows = sorted((msgspec.structs.asdict(record) for record in records), key=lambda row: tuple(row.values()))
        hours = _hours(rows)
        with self._database.write(announced=False) as connection:
            connection.execute(insert(tenant_tables.usage_records), rows)
            connection.execute(_add_to_hours(), hours)

    def sums(self, query: UsageQuery) -> list[UsageSum]:
        """The sums that a query asks for, by time and then by the fields that it groups by."""
        exact = query.width % HOUR != 0
        columns, at = (_record, cast(_record.at, Integer)) if exact else (_hour, _hour.hour)
        start: ColumnElement[int] = at - at % query.width if query.width else literal(query.start)
        group = [columns[name] for name in query.group]
        count = func.count() if exact else func.sum(_hour.requests)
        totals = [count.label("requests"), *(func.sum(columns[name]).label(name) for name in _SUMS)]
        statement = (
            select(start.label("start"), *group, *totals)
            .where(
                at >= (query.start if exact else query.start - query.start % HOUR),
                at < query.end,
                *_selection(query, columns),
            )
            .group_by(*([start] if query.width else []), *group)
            .order_by(*([start] if query.width else []), *group)
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return [UsageSum(**row._mapping) for row in rows if row.requests]

    def tokens_between(self, start: float, end: float) -> MonthTotals:
        """The tokens of all tenants and keys in the hours from `start` to before `end`."""
        query = select(_hour.tenant, _hour.key, func.sum(_hour.input_tokens + _hour.output_tokens).label("tokens"))
        with self._database.read() as connection:
            last = connection.scalar(select(func.coalesce(func.max(_record.number), 0))) or 0
            rows = connection.execute(
                query.where(_hour.hour >= start, _hour.hour < end).group_by(_hour.tenant, _hour.key)
            ).all()
        return MonthTotals(tokens={(row.tenant, row.key): row.tokens for row in rows}, number=last)

    def tokens_after(self, number: int, *, start: float, end: float) -> MonthTotals:
        """The tokens of the records that came after `number`, as far as they ended from `start` to before `end`."""
        tokens = func.sum(_record.input_tokens + _record.output_tokens).label("tokens")
        query = select(_record.tenant, _record.key, tokens, func.max(_record.number).label("last"))
        query = query.where(_record.number > number, _record.at >= start, _record.at < end).group_by(
            _record.tenant, _record.key
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        last = max([number, *(row.last for row in rows)])
        return MonthTotals(tokens={(row.tenant, row.key): row.tokens for row in rows}, number=last)

    def compute_seconds(self, tenant: str, *, start: float, key: str | None = None) -> float:
        """The seconds that a tenant's jobs, or those of one key, have computed since the hour that begins at `start`."""
        query = select(func.coalesce(func.sum(_hour.milliseconds), 0)).where(
            _hour.hour >= start, _hour.tenant == tenant, _hour.endpoint == TRAINING
        )
        with self._database.read() as connection:
            found: int = connection.scalar(query if key is None else query.where(_hour.key == key)) or 0
        return found / 1000

    def forget(self, *, before: float) -> int:
        """Delete the records that ended before a time; their sums stay. Returns how many."""
        with self._database.read() as connection:
            if connection.scalar(select(_record.number).where(_record.at < before).limit(1)) is None:
                return 0
        with self._database.write(announced=False) as connection:
            return connection.execute(delete(tenant_tables.usage_records).where(_record.at < before)).rowcount


def _hours(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What records add to the sums of their hours."""
    hours: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        fields = {"hour": int(row["at"] // HOUR) * HOUR} | {name: row[name] for name in _FIELDS}
        entry = hours.setdefault(tuple(fields.values()), fields | dict.fromkeys(("requests", *_SUMS), 0))
        entry["requests"] += 1
        for name in _SUMS:
            entry[name] += row[name]
    return [hours[key] for key in sorted(hours)]


def _add_to_hours() -> Any:
    statement = upsert(tenant_tables.usage_hours)
    sums = {name: _hour[name] + statement.excluded[name] for name in ("requests", *_SUMS)}
    return statement.on_conflict_do_update(index_elements=["hour", *_FIELDS], set_=sums)


def _selection(query: UsageQuery, columns: Any) -> list[ColumnElement[bool]]:
    wanted = (("tenant", query.tenants), ("key", query.keys), ("model", query.models), ("endpoint", query.endpoints))
    chosen = [columns[name].in_(values) for name, values in wanted if values]
    return chosen if query.batch is None else [*chosen, columns.batch.is_(query.batch)]
