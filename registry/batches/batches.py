"""The way in to batches: one transaction per call, around the functions of `table`."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from tunery.registry import audit
from tunery.registry.batches import table
from tunery.registry.batches.table import STATES, BatchClaim
from tunery.registry.data_files import insert_file, new_file
from tunery.registry.errors import Conflict
from tunery.registry.records import Batch, BatchCounts, FileEntry
from tunery.registry.storage import schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import Database

__all__ = ["LEASE_SECONDS", "OUTPUT_PURPOSE", "WINDOW_SECONDS", "Batches"]

LEASE_SECONDS = 30.0
"""Seconds after the last renewal until another gateway may claim a batch."""
WINDOW_SECONDS = 86_400.0
"""Seconds after its creation when a batch expires: the only window there is."""
OUTPUT_PURPOSE = "batch_output"


class Batches:
    """Batches that wait for a gateway, run in one, or did; what they have answered so far is under `folder`."""

    def __init__(self, database: Database, blobs: BlobStore, folder: Path, *, clock: Callable[[], float]) -> None:
        self._database, self._blobs, self._folder, self._clock = database, blobs, folder, clock

    # -- for those who submit ------------------------------------------------------------------------------------------

    def submit(
        self,
        *,
        tenant: str,
        endpoint: str,
        input_file: str,
        details: dict[str, Any],
        adapters: tuple[str, ...] | None = None,
        key: str | None = None,
        output_expires_after: float | None = None,
    ) -> Batch:
        """Queue a batch; raise Conflict (file_not_found) when its file has been deleted meanwhile."""
        now = self._clock()
        batch = Batch(
            id=f"batch_{uuid.uuid4().hex}",
            tenant=tenant,
            endpoint=endpoint,
            input_file=input_file,
            state="validating",
            created_at=now,
            expires_at=now + WINDOW_SECONDS,
            times={"validating": now},
            adapters=adapters,
            key=key,
            details=details,
            output_expires_after=output_expires_after,
        )
        with self._database.write() as connection:
            column = schema.data_files.c
            if connection.scalar(select(column.id).where(column.id == input_file, column.tenant == tenant)) is None:
                raise Conflict(f"{input_file} was deleted meanwhile; upload it again", code="file_not_found")
            table.add(connection, batch)
            made = {"endpoint": endpoint, "input_file": input_file}
            audit.record(connection, "batch.create", batch.id, at=now, tenant=tenant, after=made)
        return batch

    def get(self, batch_id: str, *, tenant: str | None = None) -> Batch:
        """A batch by id; raise NotFound."""
        with self._database.read() as connection:
            return table.find(connection, batch_id, tenant)

    def page(self, *, tenant: str, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """Up to `limit` batches, newest first, and whether there are more."""
        with self._database.read() as connection:
            return table.page(connection, tenant=tenant, after=after, limit=limit)

    def cancel(self, batch_id: str, *, tenant: str) -> Batch:
        """Ask for a batch's end: at once where nobody has begun with it. Raise NotFound, or Conflict (batch_ended)."""
        now = self._clock()
        with self._database.write() as connection:
            batch = table.find(connection, batch_id, tenant)
            if batch.state == "cancelling":
                return batch
            if batch.state not in ("validating", "in_progress"):
                raise Conflict(f"Cannot cancel a batch with status '{batch.state}'.", code="batch_ended")
            audit.record(connection, "batch.cancel", batch_id, at=now, tenant=tenant, before={"state": batch.state})
            batch = table.change(connection, batch, at=now, state="cancelling")
            untouched = "in_progress" not in batch.times and (batch.lease_until or 0.0) < now
            return table.change(connection, batch, at=now, state="cancelled") if untouched else batch

    def states(self) -> dict[str, int]:
        """How many batches are in each state."""
        column = schema.batches.c
        with self._database.read() as connection:
            rows = connection.execute(select(column.state, func.count().label("batches")).group_by(column.state))
            return dict.fromkeys(STATES, 0) | {row.state: row.batches for row in rows}

    # -- for gateways --------------------------------------------------------------------------------------------------

    def claim(self, owner: str, *, without: frozenset[str] = frozenset(), lease: float = LEASE_SECONDS) -> Batch | None:
        """Claim the next batch that is not one of `without`, or None when there is none."""
        with self._database.read() as connection:
            # Most looks find nothing, and need not wait for the write lock.
            if table.next_free(connection, at=self._clock(), lease=lease, without=without) is None:
                return None
        with self._database.write() as connection:
            return table.claim(connection, owner=owner, at=self._clock(), lease=lease, without=without)

    def advance(
        self,
        claim: BatchClaim,
        *,
        state: str | None = None,
        counts: BatchCounts | None = None,
        model: str | None = None,
        lease: float = LEASE_SECONDS,
    ) -> Batch:
        """Renew a claim, and record how far the batch is; returns it as it is now.

        One that is asked to cancel stays `cancelling`. Raises Conflict (claim_lost).
        """
        now = self._clock()
        values: dict[str, Any] = {"lease_until": now + lease}
        if counts is not None:
            values["counts"] = counts
        if model is not None:
            values["model"] = model
        with self._database.write() as connection:
            batch = table.require_claim(connection, claim)
            reached = None if batch.state == "cancelling" else state
            return table.change(connection, batch, at=now, state=reached, **values)

    def release(self, claim: BatchClaim) -> None:
        """Let another gateway go on with a claimed batch; raise Conflict (claim_lost)."""
        with self._database.write() as connection:
            batch = table.require_claim(connection, claim)
            table.change(connection, batch, at=self._clock(), owner=None, lease_until=None)

    def finish(
        self,
        claim: BatchClaim,
        state: str,
        *,
        counts: BatchCounts,
        output: Path | None = None,
        failures: Path | None = None,
        errors: Sequence[dict[str, Any]] | None = None,
    ) -> Batch:
        """End a claimed batch, and make its result files, in one transaction; raise Conflict (claim_lost).

        One that is asked to cancel ends as `cancelled`, whatever `state` says.
        """
        values: dict[str, Any] = {"counts": counts, "errors": None if errors is None else list(errors)}
        with self._blobs.lease() as lease:
            entries = {
                role: self._blobs.put(path, name=f"{claim.batch}_{role}.jsonl", lease=lease)
                for role, path in (("output", output), ("error", failures))
                if path is not None
            }
            now = self._clock()
            with self._database.write() as connection:
                batch = table.require_claim(connection, claim)
                for role, entry in entries.items():
                    values[f"{role}_file"] = _add_result(connection, batch, entry, at=now)
                reached = "cancelled" if batch.state == "cancelling" else state
                batch = table.change(connection, batch, at=now, state=reached, **values)
        shutil.rmtree(self._folder / claim.batch, ignore_errors=True)
        return batch

    def remove_leftovers(self) -> None:
        """Delete what batches that have ended left behind, because their gateway died at that moment."""
        for path in [*self._folder.iterdir()] if self._folder.is_dir() else ():
            with self._database.read() as connection:
                column = schema.batches.c
                runs = connection.scalar(select(column.id).where(column.id == path.name, column.ended.is_(False)))
            if runs is None:
                shutil.rmtree(path, ignore_errors=True)


def _add_result(connection: Connection, batch: Batch, entry: FileEntry, *, at: float) -> str:
    """Record a result file of a batch; returns its id."""
    file = new_file(
        entry,
        tenant=batch.tenant,
        purpose=OUTPUT_PURPOSE,
        status="processed",
        at=at,
        expires_after=batch.output_expires_after,
    )
    insert_file(connection, file)
    return file.id
