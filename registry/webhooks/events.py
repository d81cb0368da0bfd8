"""Add an event for webhooks, within the transaction that makes it true: a crash loses both or neither.

Events are kept whether or not an endpoint is configured, since the process that ends a job or moves an alias does not
know the servers' settings.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, insert

from tunery.registry.records import WebhookEvent
from tunery.registry.storage import schema

__all__ = ["KEPT_SECONDS", "append", "new_event"]

KEPT_SECONDS = 7 * 86400.0
"""Seconds that an event and its deliveries are kept; longer than any delivery is tried."""


def append(connection: Connection, kind: str, data: Mapping[str, Any], *, at: float) -> None:
    """Add an event, and delete those whose time is over."""
    event = schema.webhook_events
    connection.execute(delete(event).where(event.c.at < at - KEPT_SECONDS))
    added = new_event(kind, data, at=at)
    connection.execute(insert(event).values(id=added.id, type=added.type, at=added.at, data=added.data))


def new_event(kind: str, data: Mapping[str, Any], *, at: float) -> WebhookEvent:
    """An event with a new id."""
    return WebhookEvent(id=f"evt_{uuid.uuid4().hex}", type=kind, at=at, data=dict(data))
