"""How many bytes a tenant has stored: its files, and the versions of its adapters."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from tunery.registry.errors import LimitReached
from tunery.registry.storage import schema

__all__ = ["check_room", "stored_bytes"]


def stored_bytes(connection: Connection, tenant: str) -> int:
    """The bytes of a tenant, each file and version counted by itself although equal ones share their blobs."""
    file, part = schema.data_files.c, schema.files.c
    uploaded: int = connection.scalar(select(func.coalesce(func.sum(file.size), 0)).where(file.tenant == tenant)) or 0
    # "0" is the character after "/".
    own = part.adapter > f"{tenant}/", part.adapter < f"{tenant}0"
    published: int = connection.scalar(select(func.coalesce(func.sum(part.size), 0)).where(*own)) or 0
    return uploaded + published


def check_room(connection: Connection, tenant: str, more: int, *, limit: int) -> None:
    """Raise LimitReached (insufficient_quota) where `more` bytes do not fit under a limit; 0 is none."""
    if limit and (stored := stored_bytes(connection, tenant)) + more > limit:
        raise LimitReached(
            f"the tenant {tenant} may store {limit} bytes and has {stored}, and this would be {more} more: delete files "
            "or versions, or have the limit raised (storage_bytes)",
            limit="storage_bytes",
            wait=None,
            code="insufficient_quota",
        )
