"""The table of checkpoints that are kept as models, the last few of each job."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, delete, insert, select

from tunery.registry.records import Checkpoint
from tunery.registry.storage import schema
from tunery.registry.storage.mapping import to_checkpoint

__all__ = ["find", "list_all", "needed_blobs", "of_job", "remove", "replace"]

KEPT = 3
"""Checkpoints of one job that are kept, as OpenAI does; older ones make room."""


def replace(connection: Connection, checkpoint: Checkpoint) -> None:
    """Add a checkpoint in the place of one with its name, and forget those that are too many."""
    remove(connection, checkpoint.name)
    connection.execute(insert(schema.checkpoints).values(**msgspec.to_builtins(checkpoint)))
    for old in of_job(connection, checkpoint.job)[KEPT:]:
        remove(connection, old.name)


def of_job(connection: Connection, job_id: str) -> list[Checkpoint]:
    """The checkpoints of a job, newest first."""
    column = schema.checkpoints.c
    query = select(schema.checkpoints).where(column.job == job_id).order_by(column.step.desc())
    return [to_checkpoint(row) for row in connection.execute(query)]


def list_all(connection: Connection) -> list[Checkpoint]:
    """The checkpoints of all jobs, oldest first."""
    query = select(schema.checkpoints).order_by(schema.checkpoints.c.created_at, schema.checkpoints.c.step)
    return [to_checkpoint(row) for row in connection.execute(query)]


def find(connection: Connection, name: str) -> Checkpoint | None:
    """A checkpoint by the name of its model."""
    row = connection.execute(select(schema.checkpoints).where(schema.checkpoints.c.name == name)).first()
    return None if row is None else to_checkpoint(row)


def remove(connection: Connection, name: str) -> bool:
    """Forget a checkpoint; returns whether there was one."""
    return connection.execute(delete(schema.checkpoints).where(schema.checkpoints.c.name == name)).rowcount > 0


def needed_blobs(connection: Connection) -> set[str]:
    """The sha256 of every file of a checkpoint."""
    return {entry["sha256"] for files in connection.scalars(select(schema.checkpoints.c.files)) for entry in files}
