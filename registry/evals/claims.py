"""Who may work on a run, and for how long; as with jobs, only the last claimant's word counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, insert, or_, select, update

from tunery.registry.errors import Conflict
from tunery.registry.evals import table
from tunery.registry.evals.records import EvalItem, EvalRun, Measurement, RunState
from tunery.registry.storage import eval_tables, schema
from tunery.registry.storage.lapses import lapsed

__all__ = ["RunClaim", "add_items", "cancel", "claim", "finish", "release", "renew", "require_claim"]

MAX_CRASHES = 5
"""Claimants that may be gone one after the other, without storing a row, before the run fails."""


class RunClaim(msgspec.Struct, frozen=True):
    """The right to work on a run until its lease ends; `fence` is the claim's number."""

    run: str
    fence: int


def claim(connection: Connection, *, owner: str, base_digest: str, at: float, lease: float) -> EvalRun | None:
    """Claim the oldest run on this base that waits, or whose claimant is gone; None when there is none.

    A run whose claimants are gone again and again, without storing a row, fails instead (worker_lost).
    """
    column = eval_tables.eval_runs.c
    lost = and_(column.state == "in_progress", lapsed(column.lease_until, at=at, lease=lease))
    query = (
        select(column.id)
        .where(column.base_digest == base_digest, or_(column.state == "queued", lost))
        .order_by(column.created_at, column.id)
        .limit(1)
    )
    run_id = connection.scalar(query)
    if run_id is None:
        return None
    run = table.find_run(connection, run_id)
    crashes = run.crashes + (run.state == "in_progress")
    if crashes >= MAX_CRASHES:
        error = f"{crashes} servers in a row died while they did {run_id}, without storing a row; see their logs"
        _end(connection, run_id, "failed", {"error": error, "code": "worker_lost"}, at=at)
        return claim(connection, owner=owner, base_digest=base_digest, at=at, lease=lease)
    claimed = {"state": "in_progress", "owner": owner, "fence": run.fence + 1, "lease_until": at + lease}
    values = claimed | {"crashes": crashes}
    _set(connection, run_id, values, at=at)
    return table.find_run(connection, run_id)


def require_claim(connection: Connection, claimed: RunClaim) -> EvalRun:
    """The claimed run; raise Conflict (claim_lost) when it was claimed again, has ended or is gone."""
    query = select(eval_tables.eval_runs).where(eval_tables.eval_runs.c.id == claimed.run)
    row = connection.execute(query).first()
    if row is None or row.fence != claimed.fence or row.state != "in_progress":
        raise Conflict(f"{claimed.run} is no longer this server's; nothing was changed", code="claim_lost")
    return EvalRun(**row._mapping)


def renew(connection: Connection, claimed: RunClaim, *, at: float, lease: float) -> None:
    """Renew a claim; raise Conflict (claim_lost)."""
    require_claim(connection, claimed)
    _set(connection, claimed.run, {"lease_until": at + lease}, at=at)


def release(connection: Connection, claimed: RunClaim, *, at: float) -> None:
    """Let the run wait for the next server; raise Conflict (claim_lost)."""
    require_claim(connection, claimed)
    _set(connection, claimed.run, {"state": "queued", "owner": None, "lease_until": None}, at=at)


def add_items(connection: Connection, claimed: RunClaim, items: Sequence[EvalItem]) -> None:
    """Store results of rows; one that is stored already stays. Raise Conflict (claim_lost)."""
    require_claim(connection, claimed)
    item = eval_tables.eval_items.c
    here = item.position.in_([each.position for each in items])
    stored = set(connection.scalars(select(item.position).where(item.run == claimed.run, here)))
    rows = [msgspec.structs.asdict(each) for each in items if each.position not in stored]
    if rows:
        connection.execute(insert(eval_tables.eval_items), rows)
    _set(connection, claimed.run, {"crashes": 0}, at=items[0].created_at)


def cancel(connection: Connection, run_id: str, *, at: float) -> EvalRun:
    """End a run; who works on it finds out by the next thing it writes. Raise Conflict (run_ended)."""
    run = table.find_run(connection, run_id)
    if run.ended:
        raise Conflict(f"{run_id} is {run.state} and cannot be canceled", code="run_ended", param="run_id")
    return _end(connection, run_id, "canceled", {}, at=at)


def finish(
    connection: Connection,
    claimed: RunClaim,
    state: RunState,
    *,
    at: float,
    error: str | None = None,
    code: str | None = None,
    summary: dict[str, Any] | None = None,
    measured: Sequence[Measurement] = (),
) -> EvalRun:
    """End a claimed run, and record what it measured for versions that are still there; raise Conflict (claim_lost)."""
    require_claim(connection, claimed)
    for each in measured:
        column = schema.versions.c
        known = select(column.number).where(
            column.adapter == each.adapter, column.number == each.number, column.digest == each.digest
        )
        if connection.scalar(known) is not None:
            connection.execute(insert(eval_tables.version_evals).values(**msgspec.structs.asdict(each)))
    return _end(connection, claimed.run, state, {"error": error, "code": code, "summary": summary}, at=at)


def _end(connection: Connection, run_id: str, state: RunState, values: dict[str, Any], *, at: float) -> EvalRun:
    _set(connection, run_id, values | {"state": state, "owner": None, "lease_until": None, "finished_at": at}, at=at)
    return table.find_run(connection, run_id)


def _set(connection: Connection, run_id: str, values: dict[str, Any], *, at: float) -> None:
    column = eval_tables.eval_runs.c
    connection.execute(update(eval_tables.eval_runs).where(column.id == run_id).values(**values, updated_at=at))
