"""The tables of evaluations, runs and rows: find, list and count."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, Table, func, select

from tunery.registry.errors import NotFound
from tunery.registry.evals.records import EvalItem, EvalRun, Evaluation, ItemState, Measurement, RunState
from tunery.registry.storage import eval_tables

__all__ = [
    "evals_page",
    "find_eval",
    "find_run",
    "item_counts",
    "items_page",
    "measurements",
    "needed_blobs",
    "positions",
    "runs_page",
]


def find_eval(connection: Connection, eval_id: str, *, tenant: str | None, param: str = "eval_id") -> Evaluation:
    """An evaluation by id; raise NotFound, which names `param`. `tenant` of None means any."""
    query = select(eval_tables.evals).where(eval_tables.evals.c.id == eval_id)
    row = connection.execute(query if tenant is None else query.where(eval_tables.evals.c.tenant == tenant)).first()
    if row is None:
        raise NotFound(f"there is no evaluation {eval_id[:80]}", code="eval_not_found", param=param)
    return Evaluation(**row._mapping)


def find_run(connection: Connection, run_id: str, *, eval_id: str | None = None, param: str = "run_id") -> EvalRun:
    """A run by id, of that evaluation if one is given; raise NotFound, which names `param`."""
    query = select(eval_tables.eval_runs).where(eval_tables.eval_runs.c.id == run_id)
    row = connection.execute(query if eval_id is None else query.where(eval_tables.eval_runs.c.eval == eval_id)).first()
    if row is None:
        where = "; see tunery eval list" if eval_id is None else " of this evaluation"
        raise NotFound(f"there is no run {run_id[:80]}{where}", code="eval_run_not_found", param=param)
    return EvalRun(**row._mapping)


def evals_page(
    connection: Connection,
    *,
    tenant: str | None,
    after: str | None,
    limit: int,
    ascending: bool,
    by: str = "created_at",
) -> tuple[list[Evaluation], bool]:
    """Up to `limit` evaluations in the order of `by`, and whether there are more."""
    query = select(eval_tables.evals)
    query = query if tenant is None else query.where(eval_tables.evals.c.tenant == tenant)
    last = None if after is None else find_eval(connection, after, tenant=tenant, param="after")
    key = None if last is None else (getattr(last, by), last.id)
    rows = connection.execute(_ordered(query, eval_tables.evals, by, key, ascending=ascending).limit(limit + 1)).all()
    return [Evaluation(**row._mapping) for row in rows[:limit]], len(rows) > limit


def runs_page(
    connection: Connection,
    *,
    eval_id: str | None,
    state: RunState | None = None,
    after: str | None = None,
    limit: int,
    ascending: bool,
) -> tuple[list[EvalRun], bool]:
    """Up to `limit` runs by time, and whether there are more. `eval_id` of None means all evaluations."""
    column, query = eval_tables.eval_runs.c, select(eval_tables.eval_runs)
    query = query if eval_id is None else query.where(column.eval == eval_id)
    query = query if state is None else query.where(column.state == state)
    last = None if after is None else find_run(connection, after, eval_id=eval_id, param="after")
    key = None if last is None else (last.created_at, last.id)
    ordered = _ordered(query, eval_tables.eval_runs, "created_at", key, ascending=ascending)
    rows = connection.execute(ordered.limit(limit + 1)).all()
    return [EvalRun(**row._mapping) for row in rows[:limit]], len(rows) > limit


def items_page(
    connection: Connection,
    run_id: str,
    *,
    state: ItemState | None = None,
    after: int | None = None,
    limit: int,
    ascending: bool,
) -> tuple[list[EvalItem], bool]:
    """Up to `limit` rows of a run by position, and whether there are more."""
    column = eval_tables.eval_items.c
    query = select(eval_tables.eval_items).where(column.run == run_id)
    query = query if state is None else query.where(column.state == state)
    if after is not None:
        query = query.where(column.position > after if ascending else column.position < after)
    ordered = query.order_by(column.position.asc() if ascending else column.position.desc())
    rows = connection.execute(ordered.limit(limit + 1)).all()
    return [EvalItem(**row._mapping) for row in rows[:limit]], len(rows) > limit


def item_counts(connection: Connection, run_id: str) -> dict[str, int]:
    """How many rows of a run have each state."""
    column = eval_tables.eval_items.c
    query = select(column.state, func.count()).where(column.run == run_id).group_by(column.state)
    return {row[0]: row[1] for row in connection.execute(query)}


def positions(connection: Connection, run_id: str) -> set[int]:
    """The rows of a run that are stored."""
    return set(
        connection.scalars(select(eval_tables.eval_items.c.position).where(eval_tables.eval_items.c.run == run_id))
    )


def measurements(connection: Connection, digest: str) -> list[Measurement]:
    """What was measured of the versions with this digest, oldest first."""
    column = eval_tables.version_evals.c
    query = select(eval_tables.version_evals).where(column.digest == digest).order_by(column.at, column.run)
    return [Measurement(**row._mapping) for row in connection.execute(query)]


def needed_blobs(connection: Connection) -> set[str]:
    """The sha256 of the rows of every run."""
    return set(connection.scalars(select(eval_tables.eval_runs.c.data_sha256).distinct()))


def _ordered(
    query: Select[Any], table: Table, by: str, last: tuple[float, str] | None, *, ascending: bool
) -> Select[Any]:
    """The query from the row after `last` on."""
    time, key = table.c[by], table.c.id
    if last is not None:
        beyond = time > last[0] if ascending else time < last[0]
        query = query.where(beyond | ((time == last[0]) & (key > last[1] if ascending else key < last[1])))
    return query.order_by(*((time.asc(), key.asc()) if ascending else (time.desc(), key.desc())))
