"""The history of each job: its events, numbered from 1 without gaps, whichever processes wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, func, insert, select

from tunery.registry.errors import NotFound
from tunery.registry.records import StoredEvent
from tunery.registry.storage import schema
from tunery.registry.storage.mapping import to_event

__all__ = ["Note", "after", "append", "before"]


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """An event before it is numbered."""

    kind: str
    message: str
    level: str = "info"
    data: dict[str, Any] = {}


def append(connection: Connection, job_id: str, notes: Sequence[Note], *, at: float) -> None:
    """Add events to a job's history; within a write transaction, which orders all that write to it."""
    if not notes:
        return
    event = schema.job_events.c
    last: int = connection.scalar(select(func.coalesce(func.max(event.number), 0)).where(event.job == job_id)) or 0
    rows = [
        {"job": job_id, "number": number, "at": at} | msgspec.structs.asdict(note)
        for number, note in enumerate(notes, last + 1)
    ]
    connection.execute(insert(schema.job_events), rows)


def after(connection: Connection, job_id: str, number: int, *, limit: int) -> list[StoredEvent]:
    """Up to `limit` events that follow event `number`, oldest first; 0 is before the first."""
    event = schema.job_events.c
    query = select(schema.job_events).where(event.job == job_id, event.number > number)
    return [to_event(row) for row in connection.execute(query.order_by(event.number).limit(limit))]


def before(connection: Connection, job_id: str, number: int | None, *, limit: int) -> tuple[list[StoredEvent], bool]:
    """Up to `limit` events before event `number` (None: from the last one on), newest first, and whether there are more.

    Raises NotFound for a number that the job has no event of.
    """
    event = schema.job_events.c
    query = select(schema.job_events).where(event.job == job_id)
    if number is not None:
        known = connection.scalar(select(event.number).where(event.job == job_id, event.number == number))
        if known is None:
            raise NotFound(f"{job_id} has no event {number}", code="event_not_found")
        query = query.where(event.number < number)
    rows = connection.execute(query.order_by(event.number.desc()).limit(limit + 1)).all()
    return [to_event(row) for row in rows[:limit]], len(rows) > limit
