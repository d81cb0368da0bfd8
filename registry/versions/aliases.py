"""Owns moving aliases and remembering every move; refuses a move whose caller looked at an old state."""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, insert, select

from tunery.registry.errors import Conflict, InvalidInput, NotFound, near
from tunery.registry.names import check_alias
from tunery.registry.records import AliasMove, MoveKind
from tunery.registry.storage import schema
from tunery.registry.storage.rows import alias_map, to_move

__all__ = ["ANY", "Expected", "drop", "history", "move", "previous"]

ANY: Final = "any"
"""No expectation of where the alias points now."""

Expected = int | None | Literal["any"]


def move(
    connection: Connection,
    adapter: str,
    alias: str,
    number: int,
    *,
    actor: str,
    at: float,
    expected: Expected = ANY,
    reason: str = "",
    kind: MoveKind = "move",
) -> AliasMove:
    """Point `alias` at `number`; raise Conflict when it is not where `expected` says (None: it does not exist)."""
    check_alias(alias)
    found = schema.versions.c
    numbers = list(connection.scalars(select(found.number).where(found.adapter == adapter)))
    if number not in numbers:
        shown = ", ".join(map(str, sorted(numbers)[-10:])) or "none"
        raise NotFound(f"{adapter} has no version {number}; it has: {shown}", code="version_not_found")
    before = _expect(connection, adapter, alias, expected)
    connection.execute(delete(schema.aliases).where(*_which(adapter, alias)))
    connection.execute(insert(schema.aliases).values(adapter=adapter, alias=alias, number=number))
    return _record(connection, adapter, alias, before, number, actor, at, reason, kind)


def drop(
    connection: Connection,
    adapter: str,
    alias: str,
    *,
    actor: str,
    at: float,
    expected: Expected = ANY,
    reason: str = "",
) -> AliasMove:
    """Delete an alias."""
    before = _expect(connection, adapter, alias, expected)
    if before is None:
        raise NotFound(f"{adapter} has no alias {alias!r}: {near(alias, alias_map(connection, adapter))}")
    connection.execute(delete(schema.aliases).where(*_which(adapter, alias)))
    return _record(connection, adapter, alias, before, None, actor, at, reason, "drop")


def history(connection: Connection, adapter: str, alias: str | None = None) -> list[AliasMove]:
    """Every move, oldest first."""
    found = schema.alias_moves.c
    query = select(schema.alias_moves).where(found.adapter == adapter).order_by(found.id)
    if alias is not None:
        query = query.where(found.alias == alias)
    return [to_move(row) for row in connection.execute(query)]


def previous(connection: Connection, adapter: str, alias: str) -> int:
    """Where a rollback leads: the last target before the present one that still exists and is another.

    Rolling back twice goes back two targets, not forth again; a dropped alias comes back to where it was.
    """
    now = alias_map(connection, adapter).get(alias)
    found = schema.versions.c
    alive = set(connection.scalars(select(found.number).where(found.adapter == adapter)))
    for number in reversed(_trail(history(connection, adapter, alias))):
        if number != now and number in alive:
            return number
    raise InvalidInput(f"{adapter}@{alias} has no earlier version to go back to", code="nothing_to_roll_back")


def _trail(moves: list[AliasMove]) -> list[int]:
    """The targets that led to the present one; what was rolled back from is no longer among them."""
    trail: list[int] = []
    for move in moves:
        if move.kind == "rollback":
            while trail and trail[-1] != move.after:
                trail.pop()
        if move.after is not None and trail[-1:] != [move.after]:
            trail.append(move.after)
    return trail


def _expect(connection: Connection, adapter: str, alias: str, expected: Expected) -> int | None:
    before = alias_map(connection, adapter).get(alias)
    if expected != ANY and expected != before:
        raise Conflict(
            f"{adapter}@{alias} points to {before or 'nothing'}, not to {expected or 'nothing'}: somebody moved it; "
            "look again and decide anew",
            code="alias_moved",
        )
    return before


def _record(
    connection: Connection,
    adapter: str,
    alias: str,
    before: int | None,
    after: int | None,
    actor: str,
    at: float,
    reason: str,
    kind: MoveKind,
) -> AliasMove:
    moved = AliasMove(
        adapter=adapter,
        alias=alias,
        before=before,
        after=after,
        moved_at=at,
        actor=actor,
        reason=reason,
        kind=kind,
    )
    connection.execute(insert(schema.alias_moves).values(**msgspec.structs.asdict(moved)))
    return moved


def _which(adapter: str, alias: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    found = schema.aliases.c
    return (found.adapter == adapter, found.alias == alias)
