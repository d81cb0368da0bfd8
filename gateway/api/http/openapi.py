"""Completes the OpenAPI document that Litestar generates: bounds of fields, optional fields, forms, headers, and streamed
responses."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from litestar.openapi.spec import (
    OpenAPI,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    PathItem,
    Reference,
    RequestBody,
    Schema,
)

from tunery.gateway.api.schemas import admin, batches, evals, files, fine_tuning, items, requests, uploads, usage
from tunery.gateway.api.schemas import models as cards
from tunery.gateway.api.schemas import responses as schemas

__all__ = ["complete_document"]

_TYPES = (
    admin.AdapterDetails,
    admin.AdapterShare,
    admin.AdapterSummaryList,
    admin.AdapterUnshare,
    admin.AliasMoved,
    admin.AliasPoint,
    admin.AliasRollback,
    admin.AuditList,
    admin.CreatedKey,
    admin.DeletedVersion,
    admin.Key,
    admin.KeyCreate,
    admin.KeyList,
    admin.KeyRotate,
    admin.ServerState,
    admin.Share,
    admin.ShareState,
    admin.TenantList,
    admin.Unshare,
    requests.ChatRequest,
    requests.CompletionRequest,
    requests.EmbeddingRequest,
    schemas.ChatCompletion,
    schemas.Completion,
    schemas.EmbeddingList,
    schemas.ErrorEnvelope,
    cards.AdapterList,
    cards.AdapterReference,
    cards.AdapterState,
    cards.DeletedModel,
    cards.LoadRequest,
    cards.ModelList,
    evals.DeletedEval,
    evals.DeletedRun,
    evals.Eval,
    evals.EvalChange,
    evals.EvalCreate,
    evals.EvalList,
    evals.OutputItem,
    evals.OutputItemList,
    evals.Run,
    evals.RunCreate,
    evals.RunList,
    files.DeletedFile,
    files.FileCreate,
    files.FileFindings,
    files.FileList,
    files.FileObject,
    fine_tuning.FineTuningCheckpointList,
    fine_tuning.FineTuningEventList,
    fine_tuning.FineTuningJob,
    fine_tuning.FineTuningJobList,
    fine_tuning.JobCreate,
    items.DeletedResponse,
    items.ItemList,
    items.ResponseObject,
    items.ResponseRequest,
    batches.BatchCreate,
    batches.BatchList,
    batches.BatchObject,
    uploads.UploadComplete,
    uploads.UploadCreate,
    uploads.UploadObject,
    uploads.UploadPartCreate,
    uploads.UploadPartObject,
    usage.CompletionsPage,
    usage.EmbeddingsPage,
)
_FORMS = {"/v1/files": files.FileCreate, "/v1/uploads/{upload_id}/parts": uploads.UploadPartCreate}
"""Bodies in multipart/form-data, which handlers read as they come."""
_STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/fine_tuning/jobs/{job_id}/events")


def complete_document(document: OpenAPI) -> dict[str, set[str]]:
    """Complete `document` in place, and return the statuses that each path can have.

    Needed because Litestar drops the bounds of nullable fields and marks fields that may be unset as required.
    """
    _, types = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    described: Any = types
    document.components.schemas = described
    paths = document.paths or {}
    for path in _STREAMED:
        for operation in _operations(paths[path]):
            answer = (operation.responses or {}).get("200")
            if isinstance(answer, OpenAPIResponse) and answer.content:
                answer.content["text/event-stream"] = OpenAPIMediaType(schema=Schema(description="Server-sent events."))
    for path, form in _FORMS.items():
        for operation in _operations(paths[path], "post"):
            body = OpenAPIMediaType(schema=Reference(ref=f"#/components/schemas/{form.__name__}"))
            operation.request_body = RequestBody(content={"multipart/form-data": body}, required=True)
    for item in paths.values():
        for operation in _operations(item):
            _correct_headers(operation)
    return {path: _statuses(item) for path, item in paths.items()}


def _operations(item: PathItem, *methods: Literal["get", "post", "delete"]) -> list[Operation]:
    """The operations of a path with these methods, or all of them."""
    each = [getattr(item, method) for method in methods or ("get", "post", "delete")]
    return [operation for operation in each if operation]


def _correct_headers(operation: Operation) -> None:
    """Litestar describes Last-Modified as RFC 3339 has it; HTTP's dates have a form of their own."""
    for response in (operation.responses or {}).values():
        for header in (response.headers or {}).values() if isinstance(response, OpenAPIResponse) else ():
            if isinstance(header, OpenAPIHeader) and isinstance(header.schema, Schema):
                header.schema.format = None


def _statuses(item: PathItem) -> set[str]:
    return {status for operation in _operations(item) for status in operation.responses or ()}
