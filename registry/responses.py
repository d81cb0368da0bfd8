"""Stored responses of the Responses API: each with the conversation it answered, found by id until its time is over."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec
from sqlalchemy import delete, insert, select

from tunery.registry.errors import NotFound
from tunery.registry.records import StoredResponse
from tunery.registry.storage import schema
from tunery.registry.storage.database import Database
from tunery.registry.storage.mapping import to_response

__all__ = ["Responses"]


class Responses:
    """The stored responses of all tenants. One is forgotten when its time is over, at the next write."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def add(
        self, response_id: str, *, tenant: str, body: dict[str, Any], items: list[dict[str, Any]], keep_seconds: float
    ) -> StoredResponse:
        """Store a response and forget those whose time is over; raise StorageFailed when the disk does not take it."""
        now = self._clock()
        stored = StoredResponse(
            id=response_id, tenant=tenant, body=body, items=items, created_at=now, expires_at=now + keep_seconds
        )
        with self._database.write() as connection:
            connection.execute(delete(schema.responses).where(schema.responses.c.expires_at <= now))
            connection.execute(insert(schema.responses).values(**msgspec.structs.asdict(stored)))
        return stored

    def get(self, response_id: str, *, tenant: str) -> StoredResponse:
        """A response by id; raise NotFound."""
        found = self.find([response_id], tenant=tenant)
        if not found:
            raise _not_found(response_id)
        return found[response_id]

    def find(self, response_ids: Collection[str], *, tenant: str) -> dict[str, StoredResponse]:
        """Those of these responses that are stored, by id."""
        column = schema.responses.c
        query = select(schema.responses).where(
            column.id.in_(response_ids), column.tenant == tenant, column.expires_at > self._clock()
        )
        with self._database.read() as connection:
            return {row.id: to_response(row) for row in connection.execute(query)}

    def delete(self, response_id: str, *, tenant: str) -> None:
        """Forget a response; raise NotFound. Later ones of its conversation stay whole."""
        column = schema.responses.c
        with self._database.write() as connection:
            gone = connection.execute(
                delete(schema.responses).where(
                    column.id == response_id, column.tenant == tenant, column.expires_at > self._clock()
                )
            )
            if not gone.rowcount:
                raise _not_found(response_id)


def _not_found(response_id: str) -> NotFound:
    """In OpenAI's words."""
    return NotFound(f"Response with id '{response_id}' not found.", param="id")
