"""Checkpoints of queued jobs as models: stored like a version's files, found by name, and the last few of a job kept."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from tunery.registry import audit
from tunery.registry.errors import NotFound
from tunery.registry.jobs import checkpoints, history, queue
from tunery.registry.jobs.history import Note
from tunery.registry.jobs.queue import Claim
from tunery.registry.names import tenant_of
from tunery.registry.records import Checkpoint, NewVersion
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import Database
from tunery.registry.versions import publish

__all__ = ["Checkpoints"]


class Checkpoints:
    """The checkpoints of all jobs."""

    def __init__(self, database: Database, blobs: BlobStore, *, clock: Callable[[], float]) -> None:
        self._database, self._blobs, self._clock = database, blobs, clock

    def keep(self, new: NewVersion, *, claim: Claim, step: int, name: str) -> Checkpoint:
        """Store a folder in PEFT layout as the checkpoint of a claimed job after `step`, and say so in its history.

        One of the same step is replaced: a job that was killed makes it again. Raise what publishing raises for the
        folder, and Conflict (claim_lost).
        """
        with self._blobs.lease() as lease:
            draft = publish.stage(self._blobs, new, lease=lease, watch=lambda _: None)
            checkpoint = Checkpoint(
                id=f"ftckpt_{uuid.uuid4().hex[:24]}",
                job=claim.job,
                step=step,
                name=name,
                adapter=new.adapter,
                base=new.base.name,
                base_digest=new.base.digest,
                method=new.method,
                digest=draft.digest,
                files=draft.files,
                metrics=draft.metrics,
                created_at=self._clock(),
            )
            with self._database.write() as connection:
                queue.require_claim(connection, claim)
                checkpoints.replace(connection, checkpoint)
                said = Note(
                    kind="checkpoint_kept",
                    message=f"Checkpoint created at step {step} with Snapshot ID: {name}",
                    data={"step": step, "model": name, "digest": draft.digest},
                )
                history.append(connection, claim.job, [said], at=checkpoint.created_at)
        return checkpoint

    def of_job(self, job_id: str) -> list[Checkpoint]:
        """The checkpoints of a job, newest first."""
        with self._database.read() as connection:
            return checkpoints.of_job(connection, job_id)

    def all(self) -> list[Checkpoint]:
        """The checkpoints of all jobs, oldest first."""
        with self._database.read() as connection:
            return checkpoints.list_all(connection)

    def get(self, name: str) -> Checkpoint:
        """A checkpoint by the name of its model; raise NotFound (model_not_found)."""
        with self._database.read() as connection:
            found = checkpoints.find(connection, name)
        if found is None:
            raise _not_found(name)
        return found

    def remove(self, name: str) -> None:
        """Forget a checkpoint; raise NotFound (model_not_found)."""
        with self._database.write() as connection:
            found = checkpoints.find(connection, name)
            if found is None:
                raise _not_found(name)
            checkpoints.remove(connection, name)
            audit.record(
                connection,
                "checkpoint.delete",
                name,
                at=self._clock(),
                tenant=tenant_of(found.adapter),
                before={"digest": found.digest, "adapter": found.adapter},
            )


def _not_found(name: str) -> NotFound:
    return NotFound(
        f"the model {name[:256]!r} does not exist: no job has kept such a checkpoint, or it made room for a later one",
        code="model_not_found",
        param="model",
    )
