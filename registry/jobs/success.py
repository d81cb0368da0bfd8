"""The success of a job, recorded in the transaction that makes its version visible: one cannot be there without the
other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy import Connection

from tunery.registry.jobs import history, names, queue, table
from tunery.registry.jobs.history import Note
from tunery.registry.jobs.queue import Claim
from tunery.registry.records import Version

__all__ = ["Success", "succeed"]


class Success(msgspec.Struct, frozen=True, kw_only=True):
    """Which job a version ends.

    A claimed job ends only while the claim is its last. `model_name` is a name of the version besides its reference;
    `notes` are the last events of the job's history, made for the version.
    """

    job: str
    claim: Claim | None = None
    model_name: str | None = None
    notes: Callable[[Version], Sequence[Note]] = lambda version: ()


def succeed(success: Success, connection: Connection, version: Version, *, at: float) -> None:
    """Record the success; raise Conflict (claim_lost) where the claim is another worker's by now."""
    if success.claim is not None:
        queue.require_claim(connection, success.claim)
    if success.model_name is not None:
        names.add(connection, success.model_name, version, job=success.job, at=at)
    history.append(connection, success.job, success.notes(version), at=at)
    table.set_state(connection, success.job, "succeeded", version=version.number, error=None, at=at)
