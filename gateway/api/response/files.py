"""Uploaded files as OpenAI's clients know them."""

from __future__ import annotations

from tunery.gateway.api.schemas.files import FileObject
from tunery.registry.records import DataFile

__all__ = ["file_object"]


def file_object(file: DataFile) -> FileObject:
    """A file as a client sees it."""
    return FileObject(
        id=file.id,
        bytes=file.size,
        created_at=int(file.created_at),
        expires_at=None if file.expires_at is None else int(file.expires_at),
        filename=file.name,
        purpose=file.purpose,
        status=file.status,
        status_details=file.details,
    )
