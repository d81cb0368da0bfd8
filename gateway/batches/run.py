"""Runs one claimed batch: checks its file, answers its requests, and makes its result files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from tunery.gateway.api.schemas.batches import BatchError
from tunery.gateway.api.state import BACKGROUND_AHEAD, Gateway
from tunery.gateway.batches.answers import Answered, answer_line, expired_line
from tunery.gateway.batches.input_file import BatchInput, Place, read_input, read_line
from tunery.gateway.batches.journal import Journal
from tunery.registry.batches.batches import LEASE_SECONDS
from tunery.registry.batches.table import BatchClaim
from tunery.registry.errors import Conflict, NotFound, StorageFailed, TuneryError, disk_code
from tunery.registry.records import Batch, BatchCounts
from tunery.registry.storage import leases

__all__ = ["BatchRun"]

log = logging.getLogger("tunery.gateway")

POLL_SECONDS = 0.5
"""Seconds between looks at whether the batch is to be cancelled, or has expired."""
BEAT_SECONDS = LEASE_SECONDS / 6
WRITE_SECONDS = 0.2
"""Seconds for which answers are collected before they are written, together."""
COUNT_SECONDS = 1.0
"""Seconds between records of the counts."""


class BatchRun:
    """One batch, claimed by this gateway. `turns` bounds the requests that are in memory, of all its batches."""

    def __init__(self, gateway: Gateway, batch: Batch, *, turns: asyncio.Semaphore, clock: Callable[[], float]) -> None:
        self._gateway, self._batch, self._turns, self._clock = gateway, batch, turns, clock
        self._batches = gateway.registry.batches
        self._claim = BatchClaim(batch.id, batch.fence)
        self._source = Path()
        self._halt = asyncio.Event()
        """Set when no more requests are to be answered: the batch is to be cancelled, or has expired."""
        self._answered: list[Answered] = []
        """Answers that are not written yet."""

    async def run(self) -> None:
        """Run the batch to its end, or until this is cancelled; then another gateway may go on.

        Raises Conflict (claim_lost), and StorageFailed where the disk fails.
        """
        working, beating = asyncio.create_task(self._work()), asyncio.create_task(self._beat())
        try:
            await asyncio.wait((working, beating), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                beating.result()
        finally:
            for task in (working, beating):
                task.cancel()
            await asyncio.gather(working, beating, return_exceptions=True)
        working.result()

    async def release(self) -> None:
        """Let another gateway go on."""
        with contextlib.suppress(Conflict, NotFound):
            await asyncio.to_thread(self._batches.release, self._claim)

    async def _work(self) -> None:
        try:
            found = await asyncio.to_thread(self._read)
            if found.errors:
                await self._fail(found)
                return
            journal = await asyncio.to_thread(self._open_journal, found)
            try:
                await self._answer_all(found, journal)
                await self._finish(found, journal)
            finally:
                journal.close()
        except OSError as error:
            if isinstance(error, TuneryError):
                raise
            raise StorageFailed(
                f"the answers of {self._batch.id} cannot be kept: {error.strerror}", code=disk_code(error)
            ) from error

    # -- the claim -----------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Renew the claim, and hear whether the batch is to be cancelled; raise Conflict when it is somebody else's."""
        renewed, changes = time.monotonic(), -1
        while True:
            try:
                now, batch = time.monotonic(), self._batch
                if now - renewed > BEAT_SECONDS:
                    batch, renewed = await asyncio.to_thread(self._batches.advance, self._claim), now
                elif (latest := self._gateway.registry.changes()) != changes:
                    batch, changes = await asyncio.to_thread(self._batches.get, self._claim.batch), latest
                if batch.state == "cancelling" or self._clock() >= batch.expires_at:
                    self._halt.set()
            except StorageFailed as error:
                log.warning("the claim of %s could not be renewed: %s", self._claim.batch, error)
                if time.monotonic() - renewed > LEASE_SECONDS:
                    raise
            await asyncio.sleep(POLL_SECONDS)

    # -- the requests --------------------------------------------------------------------------------------------------

    def _read(self) -> BatchInput:
        files = self._gateway.registry.data_files
        try:
            self._source = files.whole_path(files.get(self._batch.input_file))
        except NotFound as error:
            return BatchInput([], None, [BatchError(code="file_not_found", message=error.message)])
        except StorageFailed as error:
            if error.code != "file_damaged":
                raise
            return BatchInput([], None, [BatchError(code=error.code, message=error.message)])
        return read_input(self._source, self._batch.endpoint)

    def _open_journal(self, found: BatchInput) -> Journal:
        """The answers so far; the batch is in progress from now on."""
        folder = self._gateway.registry.home.batches / self._batch.id
        journal = Journal(folder, fence=self._claim.fence, total=len(found.places))
        self._batch = self._batches.advance(self._claim, state="in_progress", counts=journal.counts, model=found.model)
        return journal

    async def _answer_all(self, found: BatchInput, journal: Journal) -> None:
        """Answer what is not answered yet, until all is or `_halt` is set; whatever was answered is written."""
        if self._clock() >= self._batch.expires_at or self._batch.state == "cancelling":
            return
        places = (place for place in found.places if place.number not in journal)
        count = BACKGROUND_AHEAD * self._gateway.settings.background_slots
        answering = [asyncio.create_task(self._answer(places)) for _ in range(count)]
        everything, done = asyncio.gather(*answering), asyncio.Event()
        writing, halting = asyncio.create_task(self._write(journal, done)), asyncio.create_task(self._halt.wait())
        try:
            await asyncio.wait((everything, writing, halting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*answering, halting):
                task.cancel()
            await asyncio.gather(everything, halting, return_exceptions=True)
            done.set()
            await asyncio.wait((writing,))
        writing.result()
        if not self._halt.is_set():
            everything.result()

    async def _answer(self, places: Iterator[Place]) -> None:
        """Answer one request after the other."""
        for place in places:
            async with self._turns:
                line = await asyncio.to_thread(read_line, self._source, place)
                answered = await answer_line(place.number, line, batch=self._batch, gateway=self._gateway)
                self._answered.append(answered)

    async def _write(self, journal: Journal, done: asyncio.Event) -> None:
        """Write answers as they come, and record the counts now and then, until `done` is set and all are written."""
        counted, recorded = time.monotonic(), journal.counts
        while self._answered or not done.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITE_SECONDS):
                    await done.wait()
            await self._write_answered(journal)
            if journal.counts != recorded and time.monotonic() - counted > COUNT_SECONDS:
                counted, recorded = time.monotonic(), journal.counts
                await asyncio.to_thread(self._batches.advance, self._claim, counts=recorded)

    async def _write_answered(self, journal: Journal) -> None:
        answered, self._answered = self._answered, []
        if answered:
            await asyncio.to_thread(journal.append, [entry for entry, _ in answered])
            for entry, usage in answered:
                # Not before: a request whose answer is lost is answered again, and counts once.
                self._gateway.usage.add(*usage)
                self._gateway.metrics.count_batch_request("failed" if entry.failed else "completed")

    # -- the end -------------------------------------------------------------------------------------------------------

    async def _fail(self, found: BatchInput) -> None:
        errors = [msgspec.to_builtins(error) for error in found.errors]
        await asyncio.to_thread(self._batches.finish, self._claim, "failed", counts=BatchCounts(), errors=errors)

    async def _finish(self, found: BatchInput, journal: Journal) -> None:
        """Make the result files, and end the batch in one transaction with them."""
        batch = await asyncio.to_thread(self._batches.advance, self._claim, state="finalizing", counts=journal.counts)
        missing = [place for place in found.places if place.number not in journal]
        if batch.state == "cancelling":
            await asyncio.to_thread(self._end, "cancelled", journal, [])
        else:
            await asyncio.to_thread(self._end, "expired" if missing else "completed", journal, missing)

    def _end(self, state: str, journal: Journal, expired: list[Place]) -> None:
        counts = journal.counts
        counts = msgspec.structs.replace(counts, failed=counts.failed + len(expired))
        with leases.staged(self._gateway.registry.home.staging, "batch") as folder:
            output, failures = folder / "output", folder / "failures"
            unanswered = (expired_line(read_line(self._source, place)) for place in expired)
            journal.write_results(output, failures, unanswered=unanswered)
            self._batches.finish(
                self._claim,
                state,
                counts=counts,
                output=output if counts.completed else None,
                failures=failures if counts.failed else None,
            )
