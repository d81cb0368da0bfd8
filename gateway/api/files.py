"""`/v1/files`: upload, list, read and delete files, as OpenAI has it; and what the data check found in them."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, Literal

from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import File

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.request.upload import STREAMED, Upload, check_purpose, receive_upload
from tunery.gateway.api.response.files import file_object
from tunery.gateway.api.schemas.files import LONGEST, SHORTEST, DeletedFile, FileFindings, FileList, FileObject
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import DATA, SCOPE
from tunery.registry.errors import InvalidInput
from tunery.registry.records import DataFile
from tunery.registry.storage import leases

__all__ = ["create_file", "delete_file", "file_content", "file_findings", "list_files", "show_file"]

MAX_FILE = 512 * 2**20
"""Bytes of an uploaded file."""
MAX_ID = 100
"""Characters of an id."""
FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
"""Form fields beside the file."""
EXPIRY = re.compile(r"\d{1,9}")


@post(
    "/v1/files",
    operation_id="createFile",
    summary="Upload a file",
    status_code=200,
    responses=error_responses(400, 413, 415, 429, 500),
    tags=["files"],
    request_max_body_size=MAX_FILE + 65536,
    opt={STREAMED: True, SCOPE: DATA},
)
async def create_file(
    request: Request[Any, Any, Any], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> FileObject:
    """Store a file (form fields `file` and `purpose`). One for fine-tuning is checked with every rule."""
    with leases.staged(gateway.registry.home.staging, "upload") as folder:
        upload = await receive_upload(request, folder, others=FIELDS)
        purpose, expires_after = _purpose(upload), _expiry(upload)
        if not upload.path.stat().st_size:
            raise InvalidInput("the file is empty", code="invalid_file", param="file")
        with gateway.limiter.counting():
            file = await asyncio.to_thread(
                gateway.registry.data_files.add,
                upload.path,
                tenant=principal.tenant,
                purpose=purpose,
                name=upload.name,
                status="uploaded" if purpose == "fine-tune" else "processed",
                expires_after=expires_after,
                limit=gateway.limiter.book.of_tenant(principal.tenant).storage_bytes,
            )
    return file_object(await gateway.file_checks.after_upload(file))


@get(
    "/v1/files",
    operation_id="listFiles",
    summary="List files",
    responses=error_responses(400, 404, 500),
    tags=["files"],
    opt={SCOPE: DATA},
)
async def list_files(
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    purpose: FromQuery[str | None] = None,
    after: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=10_000)] = 10_000,
    order: FromQuery[Literal["asc", "desc"]] = "desc",
) -> FileList:
    """List files, newest first unless `order` is asc."""
    files, more = gateway.registry.data_files.page(
        tenant=principal.tenant, purpose=purpose, after=after, limit=limit, ascending=order == "asc"
    )
    data = [file_object(file) for file in files]
    return FileList(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=more
    )


@get(
    "/v1/files/{file_id:str}",
    operation_id="retrieveFile",
    summary="Describe a file",
    responses=error_responses(400, 404, 500),
    tags=["files"],
    opt={SCOPE: DATA},
)
async def show_file(
    file_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> FileObject:
    """Describe a file; its `status` says whether it has been checked."""
    return file_object(_find(file_id, gateway, principal))


@get(
    "/v1/files/{file_id:str}/content",
    operation_id="downloadFile",
    summary="Read a file",
    media_type="application/octet-stream",
    responses=error_responses(400, 404, 500),
    tags=["files"],
    opt={SCOPE: DATA},
)
async def file_content(
    file_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> File:
    """The file's bytes as they were uploaded; never others."""
    file = _find(file_id, gateway, principal)
    path = await asyncio.to_thread(gateway.registry.data_files.whole_path, file)
    return File(path, filename=file.name, media_type="application/octet-stream")


@get(
    "/v1/files/{file_id:str}/findings",
    operation_id="fileFindings",
    summary="What the data check found in a file",
    responses=error_responses(400, 404, 500),
    tags=["files"],
    opt={SCOPE: DATA},
)
async def file_findings(
    file_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> FileFindings:
    """Every finding by rule and line, in the form of `tunery data check --json`."""
    file = _find(file_id, gateway, principal)
    report = await asyncio.to_thread(gateway.registry.data_files.findings, file.id)
    return FileFindings(id=file.id, status=file.status, report=report)


@delete(
    "/v1/files/{file_id:str}",
    operation_id="deleteFile",
    summary="Delete a file",
    status_code=200,
    responses=error_responses(400, 404, 500),
    tags=["files"],
    opt={SCOPE: DATA},
)
async def delete_file(
    file_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> DeletedFile:
    """Delete a file; refused while a job or batch that has not ended needs it. Versions trained on it stay."""
    _find(file_id, gateway, principal)
    await asyncio.to_thread(gateway.registry.data_files.delete, file_id, tenant=principal.tenant)
    return DeletedFile(id=file_id)


def _find(file_id: str, gateway: Gateway, principal: Principal) -> DataFile:
    if len(file_id) > MAX_ID:
        raise InvalidInput(f"no id of a file has {len(file_id)} characters", param="id")
    return gateway.registry.data_files.get(file_id, tenant=principal.tenant)


def _purpose(upload: Upload) -> str:
    purpose = upload.fields.get("purpose")
    if purpose is None:
        raise InvalidInput(
            "the form has no field 'purpose'; send fine-tune for rows to train on",
            code="missing_required_parameter",
            param="purpose",
        )
    return check_purpose(purpose)


def _expiry(upload: Upload) -> float | None:
    """Seconds from `expires_after[seconds]`, None where it is left out."""
    seconds, anchor = upload.fields.get("expires_after[seconds]"), upload.fields.get("expires_after[anchor]")
    if seconds is None and anchor is None:
        return None
    if anchor not in (None, "created_at"):
        raise InvalidInput(
            f"{anchor[:80]!r} is not an anchor; files expire after created_at", param="expires_after[anchor]"
        )
    if seconds is None or not EXPIRY.fullmatch(seconds) or not SHORTEST <= int(seconds) <= LONGEST:
        raise InvalidInput(
            f"expires_after[seconds] is a number from {SHORTEST} to {LONGEST}", param="expires_after[seconds]"
        )
    return float(seconds)
