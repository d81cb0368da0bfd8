"""Move aliases by compare-and-set, and record every move, for webhooks too."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, insert, select

from tunery.registry import audit
from tunery.registry.errors import Conflict, InvalidInput, NotFound, near
from tunery.registry.names import check_alias, tenant_of
from tunery.registry.records import AliasMove, MoveKind
from tunery.registry.storage import schema
from tunery.registry.storage.mapping import alias_map, to_move
from tunery.registry.webhooks import events

__all__ = ["ANY", "Expected", "MoveNote", "drop", "history", "move", "previous"]

ANY: Final = "any"
"""No expectation of where the alias points now."""

Expected = int | None | Literal["any"]
_ACTIONS: dict[MoveKind, audit.Action] = {
    "move": "alias.move",
    "publish": "alias.publish",
    "rollback": "alias.rollback",
    "drop": "alias.drop",
}


class MoveNote(msgspec.Struct, frozen=True, kw_only=True):
    """Who moves an alias, when (Unix seconds) and why."""

    actor: str
    at: float
    reason: str = ""
    kind: MoveKind = "move"


def move(
    connection: Connection,
    adapter: str,
    alias: str,
    number: int,
    note: MoveNote,
    *,
    expected: Expected = ANY,
) -> AliasMove:
    """Point `alias` at version `number`.

    Raise Conflict (alias_moved) when it does not point where `expected` says (None: it does not exist), and NotFound
    (version_not_found) when there is no such version.
    """
    check_alias(alias)
    column = schema.versions.c
    numbers = list(connection.scalars(select(column.number).where(column.adapter == adapter)))
    if number not in numbers:
        shown = ", ".join(map(str, sorted(numbers)[-10:])) or "none"
        raise NotFound(f"{adapter} has no version {number}; it has: {shown}", code="version_not_found")
    before = _expect(connection, adapter, alias, expected)
    connection.execute(delete(schema.aliases).where(*_which(adapter, alias)))
    connection.execute(insert(schema.aliases).values(adapter=adapter, alias=alias, number=number))
    return _record(connection, adapter, alias, before, number, note)


def drop(
    connection: Connection,
    adapter: str,
    alias: str,
    note: MoveNote,
    *,
    expected: Expected = ANY,
) -> AliasMove:
    """Delete an alias; raise NotFound when there is none of that name, and Conflict as `move` does."""
    before = _expect(connection, adapter, alias, expected)
    if before is None:
        raise NotFound(f"{adapter} has no alias {alias!r}: {near(alias, alias_map(connection, adapter))}")
    connection.execute(delete(schema.aliases).where(*_which(adapter, alias)))
    return _record(connection, adapter, alias, before, None, msgspec.structs.replace(note, kind="drop"))


def history(connection: Connection, adapter: str, alias: str | None = None) -> list[AliasMove]:
    """Every move, oldest first."""
    column = schema.alias_moves.c
    query = select(schema.alias_moves).where(column.adapter == adapter).order_by(column.id)
    if alias is not None:
        query = query.where(column.alias == alias)
    return [to_move(row) for row in connection.execute(query)]


def previous(connection: Connection, adapter: str, alias: str) -> int:
    """The version that a rollback leads to: the last different target that still exists.

    Rolling back twice goes back two targets, not forward again; a dropped alias comes back to where it was. Raise
    InvalidInput (nothing_to_roll_back) when there is none.
    """
    now = alias_map(connection, adapter).get(alias)
    column = schema.versions.c
    alive = set(connection.scalars(select(column.number).where(column.adapter == adapter)))
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
            f"{adapter}@{alias} points to {before or 'nothing'}, not to {expected or 'nothing'}: it was moved "
            "meanwhile; look again before you change it",
            code="alias_moved",
        )
    return before


def _record(
    connection: Connection,
    adapter: str,
    alias: str,
    before: int | None,
    after: int | None,
    note: MoveNote,
) -> AliasMove:
    moved = AliasMove(
        adapter=adapter,
        alias=alias,
        before=before,
        after=after,
        moved_at=note.at,
        actor=note.actor,
        reason=note.reason,
        kind=note.kind,
    )
    connection.execute(insert(schema.alias_moves).values(**msgspec.structs.asdict(moved)))
    before_after = {"before": _pointed(before), "after": _pointed(after, reason=note.reason)}
    audit.record(
        connection,
        _ACTIONS[note.kind],
        f"{adapter}@{alias}",
        at=note.at,
        tenant=tenant_of(adapter),
        actor=note.actor,
        **before_after,
    )
    about = ("adapter", "alias", "before", "after", "kind", "actor")
    events.append(connection, "tunery.alias.moved", {name: getattr(moved, name) for name in about}, at=note.at)
    return moved


def _pointed(number: int | None, **more: str) -> dict[str, Any] | None:
    """What the audit log says of where an alias points."""
    return None if number is None else {"version": number, **{name: text for name, text in more.items() if text}}


def _which(adapter: str, alias: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    column = schema.aliases.c
    return (column.adapter == adapter, column.alias == alias)
