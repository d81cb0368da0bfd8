"""`/v1/uploads`: files that come in parts, as OpenAI has them."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from litestar import Request, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.request.fields import check_fields
from tunery.gateway.api.request.upload import STREAMED, receive_upload
from tunery.gateway.api.response.files import file_object
from tunery.gateway.api.schemas.uploads import UploadComplete, UploadCreate, UploadObject, UploadPartObject
from tunery.gateway.api.state import Gateway
from tunery.gateway.jobs.file_checks import CHECKED
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import DATA, SCOPE
from tunery.registry.errors import InvalidInput
from tunery.registry.names import file_name
from tunery.registry.records import DataFile, Upload
from tunery.registry.storage import leases

__all__ = ["add_upload_part", "cancel_upload", "complete_upload", "create_upload"]

MAX_PART = 64 * 2**20
"""Bytes of a part."""
MAX_ID = 100
"""Characters of an id."""


@post(
    "/v1/uploads",
    operation_id="createUpload",
    summary="Begin a file that comes in parts",
    status_code=200,
    responses=error_responses(400, 413, 415, 500),
    tags=["files"],
    opt={SCOPE: DATA},
)
async def create_upload(
    data: JSONBody[UploadCreate],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> UploadObject:
    """Begin an upload of so many bytes. It ends after an hour unless it is completed."""
    await check_fields(request, UploadCreate)
    upload = await asyncio.to_thread(
        gateway.registry.uploads.create,
        tenant=principal.tenant,
        purpose=data.purpose,
        name=file_name(data.filename),
        mime_type=data.mime_type,
        size=data.bytes,
        file_expires_after=None if data.expires_after is None else float(data.expires_after.seconds),
    )
    return _object(upload)


@post(
    "/v1/uploads/{upload_id:str}/parts",
    operation_id="addUploadPart",
    summary="Add a part to an upload",
    status_code=200,
    responses=error_responses(400, 404, 413, 415, 500),
    tags=["files"],
    request_max_body_size=MAX_PART + 65536,
    opt={STREAMED: True, SCOPE: DATA},
)
async def add_upload_part(
    upload_id: FromPath[str],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> UploadPartObject:
    """Add a part (form field `data`, up to 64 MiB). Parts may come in any order, and several at once."""
    with leases.staged(gateway.registry.home.staging, "part") as folder:
        received = await receive_upload(request, folder, field="data")
        size = received.path.stat().st_size
        if not 0 < size <= MAX_PART:
            raise InvalidInput(f"the part has {size} bytes; send 1 to {MAX_PART}", param="data")
        part = await asyncio.to_thread(
            gateway.registry.uploads.add_part, _id(upload_id), received.path, tenant=principal.tenant
        )
    return UploadPartObject(id=part.id, created_at=int(part.created_at), upload_id=part.upload)


@post(
    "/v1/uploads/{upload_id:str}/complete",
    operation_id="completeUpload",
    summary="Join an upload's parts to a file",
    status_code=200,
    responses=error_responses(400, 404, 413, 415, 429, 500),
    tags=["files"],
    opt={SCOPE: DATA},
)
async def complete_upload(
    upload_id: FromPath[str],
    data: JSONBody[UploadComplete],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    request: Request[Any, Any, Any],
) -> UploadObject:
    """Join the parts in this order. The file is as one that came in one piece, and is checked like it."""
    await check_fields(request, UploadComplete)
    uploads, tenant = gateway.registry.uploads, principal.tenant
    upload = await asyncio.to_thread(uploads.get, _id(upload_id), tenant=tenant)
    status = "uploaded" if upload.purpose in CHECKED else "processed"
    async with gateway.joining:
        limit = gateway.limiter.book.of_tenant(tenant).storage_bytes
        with gateway.limiter.counting():
            upload, file, new = await asyncio.to_thread(
                uploads.complete,
                upload_id,
                data.part_ids,
                tenant=tenant,
                status=status,
                md5=data.md5,
                limit=limit,
            )
    return _object(upload, await gateway.file_checks.after_upload(file) if new else file)


@post(
    "/v1/uploads/{upload_id:str}/cancel",
    operation_id="cancelUpload",
    summary="Give an upload up",
    status_code=200,
    responses=error_responses(400, 404, 500),
    tags=["files"],
    opt={"no_body": True, SCOPE: DATA},
)
async def cancel_upload(
    upload_id: FromPath[str], gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]
) -> UploadObject:
    """Give an upload up, and delete its parts."""
    upload = await asyncio.to_thread(gateway.registry.uploads.cancel, _id(upload_id), tenant=principal.tenant)
    return _object(upload)


def _id(upload_id: str) -> str:
    if len(upload_id) > MAX_ID:
        raise InvalidInput(f"no id of an upload has {len(upload_id)} characters", param="id")
    return upload_id


def _object(upload: Upload, file: DataFile | None = None) -> UploadObject:
    return UploadObject(
        id=upload.id,
        bytes=upload.size,
        created_at=int(upload.created_at),
        expires_at=int(upload.expires_at),
        filename=upload.name,
        purpose=upload.purpose,
        status=cast("Any", upload.status),
        file=None if file is None else file_object(file),
    )
