"""The way in to evaluations: one transaction per call, around the functions of `table` and `claims`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import delete, insert, select, update

from tunery.registry import audit
from tunery.registry.errors import Conflict
from tunery.registry.evals import claims, table
from tunery.registry.evals.claims import RunClaim
from tunery.registry.evals.records import EvalItem, EvalRun, Evaluation, ItemState, Measurement, RunState
from tunery.registry.storage import eval_tables, schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import Database
from tunery.registry.storage.lapses import lapsed

__all__ = ["LEASE_SECONDS", "EvalStore", "NewRun"]

LEASE_SECONDS = 30.0
"""Seconds after the last renewal until another server may claim a run."""

PAGE = 100
MOST = 1 << 30


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run to add. Its rows are the uploaded file with the id `file`, or else the file at `path`."""

    eval: str
    name: str
    request: dict[str, Any]
    plan: dict[str, Any]
    data_name: str
    row_count: int
    base_digest: str
    details: dict[str, str] | None = None
    file: str | None = None
    path: Path | None = None
    owner: str | None = None


class EvalStore:
    """Evaluations of all tenants, `tenant` of None means any. Safe to use from several threads and processes at once."""

    def __init__(self, database: Database, blobs: BlobStore, *, clock: Callable[[], float]) -> None:
        self._database, self._blobs, self._clock = database, blobs, clock

    # -- evaluations ---------------------------------------------------------------------------------------------------

    def create(
        self,
        *,
        tenant: str,
        name: str,
        source: dict[str, Any],
        criteria: list[dict[str, Any]],
        details: dict[str, str] | None = None,
    ) -> Evaluation:
        """Add an evaluation."""
        now = self._clock()
        made = Evaluation(
            id=f"eval_{uuid.uuid4().hex}", tenant=tenant, name=name, source=source, criteria=criteria, details=details,
            created_at=now, updated_at=now,
        )  # fmt: skip
        with self._database.write() as connection:
            connection.execute(insert(eval_tables.evals).values(**msgspec.structs.asdict(made)))
        return made

    def get(self, eval_id: str, *, tenant: str | None = None) -> Evaluation:
        """An evaluation by id; raise NotFound."""
        with self._database.read() as connection:
            return table.find_eval(connection, eval_id, tenant=tenant)

    def page(
        self, *, tenant: str | None, after: str | None, limit: int, ascending: bool, by: str = "created_at"
    ) -> tuple[list[Evaluation], bool]:
        """Up to `limit` evaluations by time, and whether there are more."""
        with self._database.read() as connection:
            return table.evals_page(connection, tenant=tenant, after=after, limit=limit, ascending=ascending, by=by)

    def change(self, eval_id: str, values: dict[str, Any], *, tenant: str | None = None) -> Evaluation:
        """Give an evaluation another `name` or other `details`; raise NotFound."""
        with self._database.write() as connection:
            table.find_eval(connection, eval_id, tenant=tenant)
            changed = update(eval_tables.evals).where(eval_tables.evals.c.id == eval_id)
            connection.execute(changed.values(**values, updated_at=self._clock()))
            return table.find_eval(connection, eval_id, tenant=tenant)

    def delete(self, eval_id: str, *, tenant: str | None = None) -> None:
        """Forget an evaluation and its runs; what they measured of versions stays. Raise NotFound."""
        with self._database.write() as connection:
            found = table.find_eval(connection, eval_id, tenant=tenant)
            connection.execute(delete(eval_tables.evals).where(eval_tables.evals.c.id == eval_id))
            named = {"name": found.name}
            audit.record(connection, "eval.delete", eval_id, at=self._clock(), tenant=found.tenant, before=named)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def add_run(self, new: NewRun) -> EvalRun:
        """Queue a run, or give it to `owner` at once; raise Conflict (file_not_found) when its file was deleted."""
        with self._blobs.lease() as lease:
            kept = self._blobs.put(new.path, name=new.data_name, lease=lease).sha256 if new.path else None
            now = self._clock()
            with self._database.write() as connection:
                file = schema.data_files.c
                sha256 = kept or connection.scalar(select(file.sha256).where(file.id == new.file))
                if sha256 is None:
                    raise Conflict(f"{new.file} was deleted meanwhile; upload it again", code="file_not_found")
                run = _queued(new, sha256, at=now)
                connection.execute(insert(eval_tables.eval_runs).values(**msgspec.structs.asdict(run)))
        return run

    def run(self, run_id: str, *, eval_id: str | None = None) -> EvalRun:
        """A run by id; raise NotFound."""
        with self._database.read() as connection:
            return table.find_run(connection, run_id, eval_id=eval_id)

    def runs(
        self,
        *,
        eval_id: str | None,
        state: RunState | None = None,
        after: str | None = None,
        limit: int,
        ascending: bool = False,
    ) -> tuple[list[EvalRun], bool]:
        """Up to `limit` runs by time, and whether there are more."""
        with self._database.read() as connection:
            return table.runs_page(
                connection, eval_id=eval_id, state=state, after=after, limit=limit, ascending=ascending
            )

    def items(
        self,
        run_id: str,
        *,
        state: ItemState | None = None,
        after: int | None = None,
        limit: int = MOST,
        ascending: bool = True,
    ) -> tuple[list[EvalItem], bool]:
        """Up to `limit` results of rows by position, and whether there are more."""
        with self._database.read() as connection:
            return table.items_page(connection, run_id, state=state, after=after, limit=limit, ascending=ascending)

    def counts(self, run_id: str) -> dict[str, int]:
        """How many rows of a run have each state."""
        with self._database.read() as connection:
            return table.item_counts(connection, run_id)

    def positions(self, run_id: str) -> set[int]:
        """The rows of a run that are stored."""
        with self._database.read() as connection:
            return table.positions(connection, run_id)

    def all_items(self, run_id: str) -> Iterator[EvalItem]:
        """Every stored result of a run, a page in memory at a time."""
        after, more = None, True
        while more:
            items, more = self.items(run_id, after=after, limit=PAGE)
            yield from items
            after = items[-1].position if items else None

    def data_path(self, run: EvalRun) -> Path:
        """Where the rows of a run are stored."""
        return self._blobs.path(run.data_sha256)

    def cancel(self, run_id: str) -> EvalRun:
        """End a run; raise NotFound, or Conflict (run_ended)."""
        with self._database.write() as connection:
            return claims.cancel(connection, run_id, at=self._clock())

    def delete_run(self, run_id: str) -> None:
        """Forget a run and its rows; what it measured of versions stays. Raise NotFound."""
        with self._database.write() as connection:
            table.find_run(connection, run_id)
            connection.execute(delete(eval_tables.eval_runs).where(eval_tables.eval_runs.c.id == run_id))

    # -- for those who run them ----------------------------------------------------------------------------------------

    def claim(self, owner: str, *, base_digest: str, lease: float = LEASE_SECONDS) -> EvalRun | None:
        """Claim the next run on this base, or None."""
        with self._database.write() as connection:
            return claims.claim(connection, owner=owner, base_digest=base_digest, at=self._clock(), lease=lease)

    def has_work(self, base_digest: str, *, lease: float = LEASE_SECONDS) -> bool:
        """Whether there is a run on this base to claim, without taking the write lock."""
        column = eval_tables.eval_runs.c
        lost = (column.state == "in_progress") & lapsed(column.lease_until, at=self._clock(), lease=lease)
        waiting = (column.state == "queued") | lost
        with self._database.read() as connection:
            query = select(column.id).where(column.base_digest == base_digest, waiting).limit(1)
            return connection.scalar(query) is not None

    def renew(self, claim: RunClaim, *, lease: float = LEASE_SECONDS) -> None:
        """Renew a claim; raise Conflict (claim_lost)."""
        with self._database.write() as connection:
            claims.renew(connection, claim, at=self._clock(), lease=lease)

    def release(self, claim: RunClaim) -> None:
        """Let a claimed run wait for the next server; raise Conflict (claim_lost)."""
        with self._database.write() as connection:
            claims.release(connection, claim, at=self._clock())

    def add_item(self, claim: RunClaim, *, position: int, state: ItemState, data: dict[str, Any]) -> None:
        """Store the result of a row; raise Conflict (claim_lost)."""
        item = EvalItem(run=claim.run, position=position, state=state, data=data, created_at=self._clock())
        with self._database.write() as connection:
            claims.add_items(connection, claim, [item])

    def finish(self, claim: RunClaim, *, summary: dict[str, Any], measured: Sequence[Measurement]) -> EvalRun:
        """Record that a claimed run is complete, and what it measured of versions; raise Conflict (claim_lost)."""
        now = self._clock()
        dated = [msgspec.structs.replace(each, at=now) for each in measured]
        with self._database.write() as connection:
            return claims.finish(connection, claim, "completed", at=now, summary=summary, measured=dated)

    def fail(self, claim: RunClaim, *, error: str, code: str) -> EvalRun:
        """Record why a claimed run cannot be completed; raise Conflict (claim_lost)."""
        with self._database.write() as connection:
            return claims.finish(connection, claim, "failed", at=self._clock(), error=error, code=code)

    # -- versions ------------------------------------------------------------------------------------------------------

    def measurements(self, digest: str) -> list[Measurement]:
        """What was measured of the versions with this digest, oldest first."""
        with self._database.read() as connection:
            return table.measurements(connection, digest)


def _queued(new: NewRun, sha256: str, *, at: float) -> EvalRun:
    claimed: dict[str, Any] = (
        {"state": "queued"}
        if new.owner is None
        else {"state": "in_progress", "owner": new.owner, "fence": 1, "lease_until": at + LEASE_SECONDS}
    )
    return EvalRun(
        id=f"evalrun_{uuid.uuid4().hex}", eval=new.eval, name=new.name, request=new.request, plan=new.plan,
        details=new.details, data_name=new.data_name, data_sha256=sha256, row_count=new.row_count,
        base_digest=new.base_digest, created_at=at, updated_at=at, **claimed,
    )  # fmt: skip
