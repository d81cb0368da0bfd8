"""One entry of the audit log, and `record`, which writes it in the transaction of the change.

`before` and `after` say what was changed in a few words and numbers. Secrets, prompts and answers have no place there.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, insert, select

from tunery.registry.audit.origin import current_origin
from tunery.registry.storage import tenant_tables

__all__ = ["ACTIONS", "Action", "AuditEntry", "record"]

Action = Literal[
    "key.create", "key.rotate", "key.revoke",
    "alias.move", "alias.publish", "alias.rollback", "alias.drop",
    "version.publish", "version.delete", "checkpoint.delete",
    "adapter.share", "adapter.unshare",
    "job.create", "job.pause", "job.resume", "job.cancel",
    "batch.create", "batch.cancel",
    "file.delete", "eval.delete", "base.add", "webhooks.set", "limits.set",
]  # fmt: skip
"""What is recorded; the word before the dot is the kind of thing that was changed."""

ACTIONS: tuple[str, ...] = Action.__args__  # type: ignore[attr-defined]


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One change; `id` grows with every entry, `at` is Unix time in seconds.

    `tenant` is whose thing the `target` is, empty where it belongs to all. `label` is how the actor's key was called
    then. `request_id` and `source` are empty for what came over no request.
    """

    id: int
    at: float
    tenant: str
    actor: str
    label: str
    action: str
    target: str
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    request_id: str = ""
    source: str = ""


def record(
    connection: Connection,
    action: Action,
    target: str,
    *,
    at: float,
    tenant: str = "",
    actor: str | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Record a change of `target`, a thing of `tenant`, within the transaction that makes it.

    `actor` is None for whoever sent the request that is being answered, else this machine's user.
    """
    origin = current_origin()
    who = actor or origin.actor
    connection.execute(
        insert(tenant_tables.audit_log).values(
            at=at,
            tenant=tenant,
            actor=who,
            label=_label(connection, who),
            action=action,
            target=target,
            before=before,
            after=after,
            request_id=origin.request_id,
            source=origin.source,
        )
    )


def _label(connection: Connection, actor: str) -> str:
    """How a key is called, kept beside its id so that the entry can be read without the key."""
    kind, _, key_id = actor.partition(":")
    if kind != "key":
        return ""
    key = tenant_tables.api_keys.c
    row = connection.execute(select(key.tenant, key.label).where(key.id == key_id)).first()
    return "" if row is None else row.label or row.tenant
