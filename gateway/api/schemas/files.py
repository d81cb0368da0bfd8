"""The bodies of the file endpoints, as OpenAI has them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "LONGEST", "SHORTEST", "DeletedFile", "ExpiresAfter", "FileCreate", "FileFindings", "FileList", "FileObject", "Purpose",
]  # fmt: skip

Purpose = Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]
"""What a client may upload a file for."""
EXPIRY_FIELDS = {"expires_anchor": "expires_after[anchor]", "expires_seconds": "expires_after[seconds]"}
SHORTEST, LONGEST = 3600, 2_592_000
"""Seconds after which a file may expire."""


class ExpiresAfter(msgspec.Struct, frozen=True, kw_only=True):
    """When a file expires: `seconds` after it is made."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=SHORTEST, le=LONGEST)]


class FileCreate(msgspec.Struct, frozen=True, kw_only=True, rename=EXPIRY_FIELDS):
    """The form of an upload, for the document alone: the form is read as it comes."""

    file: Annotated[str, Meta(min_length=1, extra_json_schema={"format": "binary"})]
    purpose: Purpose
    expires_anchor: Literal["created_at"] | msgspec.UnsetType = msgspec.UNSET
    expires_seconds: Annotated[int, Meta(ge=SHORTEST, le=LONGEST)] | msgspec.UnsetType = msgspec.UNSET


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file; `status` is uploaded while it is checked, then processed or error.

    `status_details` are the first findings of the check, in words.
    """

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: str
    status_details: str | None = None


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FileFindings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the data check found in a file, as `tunery data check --json` prints it.

    `report` is null while the file is checked, and for files that are not checked.
    """

    id: str
    object: Literal["file.findings"] = "file.findings"
    status: str
    report: dict[str, Any] | None
