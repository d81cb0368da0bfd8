"""The bodies of the endpoints for uploads in parts, as OpenAI has them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tunery.gateway.api.schemas.files import ExpiresAfter, FileObject, Purpose

__all__ = ["MAX_UPLOAD", "UploadComplete", "UploadCreate", "UploadObject", "UploadPartCreate", "UploadPartObject"]

MAX_UPLOAD = 8 * 2**30
"""Bytes of a file that comes in parts."""


class UploadCreate(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/uploads`: the file that the parts will make. `mime_type` is kept, and means nothing."""

    filename: Annotated[str, Meta(min_length=1)]
    purpose: Purpose
    bytes: Annotated[int, Meta(ge=1, le=MAX_UPLOAD)]
    mime_type: Annotated[str, Meta(max_length=255)]
    expires_after: ExpiresAfter | None = None


class UploadPartCreate(msgspec.Struct, frozen=True, kw_only=True):
    """The form of a part, for the document alone: the form is read as it comes."""

    data: Annotated[str, Meta(min_length=1, extra_json_schema={"format": "binary"})]


class UploadComplete(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/uploads/{id}/complete`: the parts in the order of their bytes, and the md5 of all of them, in hex."""

    part_ids: Annotated[list[str], Meta(min_length=1, max_length=10_000)]
    md5: str | None = None


class UploadObject(msgspec.Struct, frozen=True, kw_only=True):
    """An upload; `file` is what became of it."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None = None


class UploadPartObject(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an upload."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
