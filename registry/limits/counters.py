"""What several gateways of one machine count together, in the registry's database.

Requests and tokens are counted by slots of a sliding window (see `window`); a gateway claims some for itself and gives
back what it has not used when the slot is over, so that most requests cost no transaction. Concurrent requests are
held: a gateway that dies holds them for HOLD_SECONDS more. Times are the machine's monotonic clock, which all of its
processes share and which starts again when it does; what seems to be from the future is from before that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, and_, delete, func, or_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from tunery.registry.limits.window import WINDOW_SLOTS, SlidingWindow, slot_of
from tunery.registry.storage import tenant_tables
from tunery.registry.storage.database import Database

__all__ = ["HOLD_SECONDS", "Claim", "Exchange", "Exchanged", "Granted", "Hold", "LimitCounters", "Return"]

HOLD_SECONDS = 15.0
"""Seconds for which a gateway holds concurrent requests unless it says so again."""
_counter, _held = tenant_tables.limit_counters.c, tenant_tables.limit_holds.c


class Claim(msgspec.Struct, frozen=True):
    """Count `most` under a limit, or what is left of it, if that is at least `need`."""

    subject: str
    resource: str
    need: int
    most: int
    limit: int


class Return(msgspec.Struct, frozen=True):
    """Count an amount of a slot no longer."""

    subject: str
    resource: str
    slot: int
    amount: int


class Hold(msgspec.Struct, frozen=True):
    """Hold `most` concurrent requests in all for the gateway, or what is left of the limit, if that is at least `need`."""

    subject: str
    need: int
    most: int
    limit: int


class Granted(msgspec.Struct, frozen=True):
    """What a claim got, 0 where it was refused, and what the window has now, by slot."""

    amount: int
    slots: dict[int, int]


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """What one gateway asks for and gives back at once."""

    owner: str
    now: float
    claims: Sequence[Claim] = ()
    returns: Sequence[Return] = ()
    holds: Sequence[Hold] = ()


class Exchanged(msgspec.Struct, frozen=True, kw_only=True):
    """The answers to the claims, and how many requests the gateway holds after each of the `holds`."""

    claims: list[Granted]
    holds: list[int]


class LimitCounters:
    """The counters of one registry."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pruned = -1

    @staticmethod
    def now() -> float:
        """The time that counts: the machine's."""
        return time.monotonic()

    def exchange(self, asked: Exchange) -> Exchanged:
        """Give back, then claim and hold, in one transaction; raise StorageFailed."""
        slot = slot_of(asked.now)
        with self._database.write_lightly() as connection:
            if slot != self._pruned:
                _prune(connection, asked.now)
                self._pruned = slot
            for back in asked.returns:
                _give_back(connection, back)
            claims = [_claim(connection, claim, asked.now) for claim in asked.claims]
            holds = [_hold(connection, hold, asked) for hold in asked.holds]
        return Exchanged(claims=claims, holds=holds)


def _prune(connection: Connection, now: float) -> None:
    """Delete what counts no more."""
    slot = slot_of(now)
    connection.execute(
        delete(tenant_tables.limit_counters).where(or_(_counter.slot <= slot - WINDOW_SLOTS, _counter.slot > slot + 1))
    )
    connection.execute(
        delete(tenant_tables.limit_holds).where(or_(_held.until < now, _held.until > now + 2 * HOLD_SECONDS))
    )


def _give_back(connection: Connection, back: Return) -> None:
    which = and_(_counter.subject == back.subject, _counter.resource == back.resource, _counter.slot == back.slot)
    left = func.max(_counter.used - back.amount, 0)
    connection.execute(update(tenant_tables.limit_counters).where(which).values(used=left))


def _claim(connection: Connection, claim: Claim, now: float) -> Granted:
    slot = slot_of(now)
    which = and_(
        _counter.subject == claim.subject,
        _counter.resource == claim.resource,
        _counter.slot > slot - WINDOW_SLOTS,
        _counter.slot <= slot + 1,
    )
    rows = connection.execute(select(_counter.slot, _counter.used).where(which)).all()
    slots: dict[int, int] = {row.slot: row.used for row in rows}
    free = claim.limit - SlidingWindow(slots).used(now)
    amount = min(claim.most, free)
    if amount < claim.need:
        return Granted(0, slots)
    statement = upsert(tenant_tables.limit_counters).values(
        subject=claim.subject, resource=claim.resource, slot=slot, used=amount
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["subject", "resource", "slot"], set_={"used": _counter.used + statement.excluded.used}
        )
    )
    return Granted(amount, slots | {slot: slots.get(slot, 0) + amount})


def _hold(connection: Connection, hold: Hold, asked: Exchange) -> int:
    """How many the gateway holds now: as many as before where there is no room for what it needs."""
    rows = connection.execute(
        select(_held.owner, _held.held).where(_held.subject == hold.subject, _held.until >= asked.now)
    )
    held: dict[str, int] = {row.owner: row.held for row in rows}
    mine = held.pop(asked.owner, 0)
    amount = min(hold.most, hold.limit - sum(held.values()))
    if amount < hold.need:
        amount = mine
    statement = upsert(tenant_tables.limit_holds).values(
        owner=asked.owner, subject=hold.subject, held=amount, until=asked.now + HOLD_SECONDS
    )
    changed = {name: statement.excluded[name] for name in ("held", "until")}
    connection.execute(statement.on_conflict_do_update(index_elements=["owner", "subject"], set_=changed))
    return amount
