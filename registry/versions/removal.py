"""Remove a version; its files stay until a collection finds that nothing needs them."""

from __future__ import annotations

from sqlalchemy import delete, select

from tunery.registry import audit
from tunery.registry.errors import Conflict
from tunery.registry.names import tenant_of
from tunery.registry.records import Version
from tunery.registry.sharing import sharing
from tunery.registry.storage import schema
from tunery.registry.storage.mapping import alias_map
from tunery.registry.storage.mirror import Change
from tunery.registry.versions import aliases
from tunery.registry.versions.aliases import MoveNote

__all__ = ["remove"]


def remove(change: Change, version: Version, *, actor: str, at: float, force: bool) -> None:
    """Forget a version, for good: its number is not given out again.

    Raise Conflict (version_in_use) while a job that has not ended continues from it, and while an alias points to it,
    unless `force` drops the alias as well.
    """
    connection = change.connection
    job = schema.jobs.c
    continuing = select(job.id).where(
        job.request["parent"].as_string() == version.name, job.state.in_(("queued", "running", "paused"))
    )
    if jobs := connection.scalars(continuing.order_by(job.created_at, job.id)).all():
        raise Conflict(
            f"{', '.join(jobs)} continue{'s' if len(jobs) == 1 else ''} from {version.name}: let it end, or cancel it",
            code="version_in_use",
        )
    pointing = [alias for alias, n in alias_map(connection, version.adapter).items() if n == version.number]
    if pointing and not force:
        raise Conflict(
            f"{', '.join(pointing)} points to {version.name}: move it first, or force the removal",
            code="version_in_use",
        )
    note = MoveNote(actor=actor, at=at, reason="version removed")
    for alias in pointing:
        aliases.drop(connection, version.adapter, alias, note)
    column = schema.versions.c
    connection.execute(
        delete(schema.versions).where(column.adapter == version.adapter, column.number == version.number)
    )
    audit.record(
        connection,
        "version.delete",
        version.name,
        at=at,
        tenant=tenant_of(version.adapter),
        actor=actor,
        before={"digest": version.digest, "aliases": pointing},
    )
    if connection.scalar(select(column.number).where(column.adapter == version.adapter).limit(1)) is None:
        sharing.end(connection, version.adapter, actor=actor, at=at)
    change.removed(version.adapter, version.number)
    change.moved(version.adapter)
