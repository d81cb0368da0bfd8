"""The table of batches: add, find, list, claim, and record how far one is. Each function is part of a transaction.

A claim is a lease, as a job's is (see `jobs.queue`): each has a fence, one higher than the last, and what a claimant
writes counts only while its fence is the batch's.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, func, insert, or_, select, update

from tunery.registry.errors import Conflict, NotFound
from tunery.registry.records import Batch, BatchCounts
from tunery.registry.storage import schema
from tunery.registry.storage.lapses import lapsed
from tunery.registry.storage.mapping import to_batch

__all__ = ["ENDED", "STATES", "BatchClaim", "add", "change", "claim", "find", "next_free", "page", "require_claim"]

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
"""States in which a batch stays."""
STATES = ("validating", "in_progress", "finalizing", "cancelling", *sorted(ENDED))


class BatchClaim(msgspec.Struct, frozen=True):
    """The right to run a batch until its lease ends; `fence` is the claim's number."""

    batch: str
    fence: int


def add(connection: Connection, batch: Batch) -> None:
    """Record a new batch."""
    connection.execute(insert(schema.batches).values(**msgspec.to_builtins(batch)))


def find(connection: Connection, batch_id: str, tenant: str | None = None) -> Batch:
    """A batch by id, of any tenant if None; raise NotFound."""
    column = schema.batches.c
    query = select(schema.batches).where(column.id == batch_id)
    row = connection.execute(query if tenant is None else query.where(column.tenant == tenant)).first()
    if row is None:
        raise NotFound(f"No batch found with id '{batch_id}'.", param="id")
    return to_batch(row)


def page(connection: Connection, *, tenant: str, after: str | None, limit: int) -> tuple[list[Batch], bool]:
    """Up to `limit` batches, newest first, and whether there are more; raise NotFound for an unknown `after`."""
    column = schema.batches.c
    query = select(schema.batches).where(column.tenant == tenant)
    if after is not None:
        last = find(connection, after, tenant)
        same = (column.created_at == last.created_at) & (column.id < last.id)
        query = query.where((column.created_at < last.created_at) | same)
    rows = connection.execute(query.order_by(column.created_at.desc(), column.id.desc()).limit(limit + 1)).all()
    return [to_batch(row) for row in rows[:limit]], len(rows) > limit


def next_free(connection: Connection, *, at: float, lease: float, without: frozenset[str]) -> str | None:
    """The batch to claim next, or None when there is none.

    That of the tenant with the fewest running ones goes first, then the oldest.
    """
    batch, other = schema.batches.c, schema.batches.alias("other").c
    running = (
        select(func.count()).where(other.tenant == batch.tenant, other.ended.is_(False), other.lease_until >= at)
    ).scalar_subquery()
    free = or_(batch.lease_until.is_(None), lapsed(batch.lease_until, at=at, lease=lease))
    query = select(batch.id).where(batch.ended.is_(False), free, batch.id.not_in(list(without)))
    found: str | None = connection.scalar(query.order_by(running, batch.created_at, batch.id).limit(1))
    return found


def claim(connection: Connection, *, owner: str, at: float, lease: float, without: frozenset[str]) -> Batch | None:
    """Claim the next batch for `lease` seconds, or None when there is none."""
    found = next_free(connection, at=at, lease=lease, without=without)
    if found is None:
        return None
    column = schema.batches.c
    values = {"owner": owner, "fence": column.fence + 1, "lease_until": at + lease}
    connection.execute(update(schema.batches).where(column.id == found).values(**values))
    return find(connection, found)


def require_claim(connection: Connection, claim: BatchClaim) -> Batch:
    """The claimed batch; raise Conflict (claim_lost) when the claim is not its last one, or the batch has ended."""
    batch = find(connection, claim.batch)
    if batch.fence != claim.fence or batch.ended:
        raise Conflict(
            f"{claim.batch} is no longer this gateway's: its lease ran out or it has ended; nothing was changed",
            code="claim_lost",
        )
    return batch


def change(connection: Connection, batch: Batch, *, at: float, state: str | None = None, **values: Any) -> Batch:
    """Record a batch's new state, if any, and other columns."""
    if isinstance(counts := values.get("counts"), BatchCounts):
        values["counts"] = msgspec.to_builtins(counts)
    if state is not None:
        values |= {"state": state, "ended": state in ENDED, "times": {state: at} | batch.times}
        if state in ENDED:
            values |= {"owner": None, "lease_until": None}
    connection.execute(update(schema.batches).where(schema.batches.c.id == batch.id).values(**values))
    return find(connection, batch.id)
