"""The outbox: which event is to be sent to which endpoint, when next, and how that went.

Every endpoint reads the events in order, from the one that was the last when it was configured. Claiming a delivery
defers it, so that a second server leaves it alone and the next one sends it again when the first has died.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from tunery.registry import audit
from tunery.registry.records import WebhookEvent
from tunery.registry.storage import schema
from tunery.registry.storage.database import Database

__all__ = ["CLAIM_SECONDS", "Delivery", "EndpointState", "Outbox", "Pending"]

CLAIM_SECONDS = 30.0
"""Seconds after which a claimed delivery is sent again unless it was settled; longer than one attempt takes."""
FAN_OUT = 500
"""Events that become deliveries in one transaction."""

_event, _endpoint, _delivery = schema.webhook_events.c, schema.webhook_endpoints.c, schema.webhook_deliveries.c


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """An event to send now; `attempt` counts from 1, and only the last one's outcome is recorded."""

    url: str
    number: int
    attempt: int
    event: WebhookEvent


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """Deliveries that wait, for all endpoints, and the age of the oldest one's event in seconds."""

    count: int
    oldest_seconds: float


class EndpointState(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint's deliveries stand; `error` is that of the last one which failed."""

    pending: int = 0
    delivered: int = 0
    given_up: int = 0
    error: str | None = None


class Outbox:
    """The deliveries of one registry. Safe to use from several threads and processes at once."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def configure(self, urls: Collection[str]) -> None:
        """Begin with the endpoints that are new, from the next event on, and forget those that are gone."""
        with self._database.read() as connection:
            if set(connection.scalars(select(_endpoint.url))) == set(urls):
                # A server must also start where the disk is full.
                return
        with self._database.write() as connection:
            known = set(connection.scalars(select(_endpoint.url)))
            connection.execute(delete(schema.webhook_endpoints).where(_endpoint.url.in_(known.difference(urls))))
            last = connection.scalar(select(func.coalesce(func.max(_event.number), 0)))
            for url in set(urls) - known:
                connection.execute(insert(schema.webhook_endpoints).values(url=url, last_event=last))
            before, after = ({"hosts": _hosts(each)} for each in (known, urls))
            audit.record(connection, "webhooks.set", "webhooks", at=self._clock(), before=before, after=after)

    def claim(self, url: str, *, kinds: Collection[str]) -> Delivery | None:
        """The endpoint's delivery that has been due the longest, None when there is none.

        Events of other `kinds` are passed over.
        """
        now = self._clock()
        with self._database.read() as connection:
            if not _has_news(connection, url) and _due(connection, url, at=now) is None:
                return None
        with self._database.write() as connection:
            _fan_out(connection, url, kinds)
            due = _due(connection, url, at=now)
            if due is not None:
                values = {"attempts": due.attempt, "due_at": now + CLAIM_SECONDS}
                connection.execute(update(schema.webhook_deliveries).where(*_which(due)).values(**values))
            return due

    def settle(self, delivery: Delivery, state: Literal["delivered", "given_up"], *, error: str | None = None) -> None:
        """Record that a delivery is not tried again."""
        self._record(delivery, state=state, error=error)

    def defer(self, delivery: Delivery, *, until: float, error: str) -> None:
        """Let a delivery that failed wait until a time in Unix seconds."""
        self._record(delivery, due_at=until, error=error)

    def _record(self, delivery: Delivery, **values: object) -> None:
        with self._database.write() as connection:
            last = (_delivery.attempts == delivery.attempt, _delivery.state == "pending")
            connection.execute(update(schema.webhook_deliveries).where(*_which(delivery), *last).values(**values))

    def pending(self) -> Pending:
        """What waits, for monitoring."""
        query = select(func.count(), func.min(_event.at)).where(
            _delivery.state == "pending", _delivery.event == _event.number
        )
        with self._database.read() as connection:
            count, oldest = connection.execute(query).one()
        return Pending(count=count, oldest_seconds=0.0 if oldest is None else max(0.0, self._clock() - oldest))

    def state(self, url: str, *, kinds: Collection[str]) -> EndpointState:
        """How the deliveries to an endpoint that gets events of these kinds stand."""
        with self._database.read() as connection:
            counted = select(_delivery.state, func.count().label("deliveries")).where(_delivery.url == url)
            counts = {row.state: row.deliveries for row in connection.execute(counted.group_by(_delivery.state))}
            failed = select(_delivery.error).where(_delivery.url == url, _delivery.error.is_not(None))
            error = connection.scalar(failed.order_by(_delivery.event.desc()).limit(1))
            news = connection.scalar(select(func.count()).where(_is_news(url), _event.type.in_(kinds)))
        return EndpointState(**counts | {"pending": counts.get("pending", 0) + (news or 0)}, error=error)


def _hosts(urls: Collection[str]) -> list[str]:
    """What the audit log says of endpoints: the rest of a URL may be a secret."""
    parts = [urlsplit(url) for url in sorted(urls)]
    return [f"{part.scheme}://{part.hostname}" for part in parts]


def _which(delivery: Delivery) -> tuple[ColumnElement[bool], ...]:
    return (_delivery.url == delivery.url, _delivery.event == delivery.number)


def _is_news(url: str) -> ColumnElement[bool]:
    """Whether an event has not become a delivery to an endpoint yet, or been passed over."""
    return (_endpoint.url == url) & (_event.number > _endpoint.last_event)


def _has_news(connection: Connection, url: str) -> bool:
    return connection.scalar(select(_event.number).where(_is_news(url)).limit(1)) is not None


def _fan_out(connection: Connection, url: str, kinds: Collection[str]) -> None:
    """Turn the endpoint's next events into deliveries."""
    last = connection.scalar(select(_endpoint.last_event).where(_endpoint.url == url))
    if last is None:
        return
    query = select(_event.number, _event.type, _event.at).where(_event.number > last).order_by(_event.number)
    events = connection.execute(query.limit(FAN_OUT)).all()
    rows = [
        {"url": url, "event": event.number, "state": "pending", "attempts": 0, "due_at": event.at}
        for event in events
        if event.type in kinds
    ]
    if rows:
        connection.execute(insert(schema.webhook_deliveries), rows)
    if events:
        done = {"last_event": events[-1].number}
        connection.execute(update(schema.webhook_endpoints).where(_endpoint.url == url).values(**done))


def _due(connection: Connection, url: str, *, at: float) -> Delivery | None:
    query = (
        select(_delivery.attempts, schema.webhook_events)
        .where(_delivery.url == url, _delivery.state == "pending", _delivery.due_at <= at)
        .where(_event.number == _delivery.event)
        .order_by(_delivery.due_at, _delivery.event)
        .limit(1)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    event = WebhookEvent(id=row.id, type=row.type, at=row.at, data=row.data)
    return Delivery(url=url, number=row.number, attempt=row.attempts + 1, event=event)
