"""Completes the OpenAPI document that Litestar generates: bounds of fields, optional fields, and streamed responses."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar.openapi.spec import OpenAPI, OpenAPIMediaType, OpenAPIResponse, PathItem, Schema

from tunery.gateway.api.schemas import batches, evals, files, fine_tuning, items, requests, uploads
from tunery.gateway.api.schemas import models as cards
from tunery.gateway.api.schemas import responses as schemas

__all__ = ["complete_document"]

_TYPES = (
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
    uploads.UploadPartObject,
)
_STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/fine_tuning/jobs/{job_id}/events")


def complete_document(document: OpenAPI) -> dict[str, set[str]]:
    """Complete `document` in place, and return the statuses that each path can have.

    Needed because Litestar drops the bounds of nullable fields and marks fields that may be unset as required.
    """
    _, types = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    described: Any = types
    document.components.schemas = described
    for path in _STREAMED:
        item = (document.paths or {})[path]
        operation = item.post or item.get
        answer = operation.responses["200"] if operation and operation.responses else None
        if isinstance(answer, OpenAPIResponse) and answer.content:
            answer.content["text/event-stream"] = OpenAPIMediaType(schema=Schema(description="Server-sent events."))
    return {path: _statuses(item) for path, item in (document.paths or {}).items()}


def _statuses(item: PathItem) -> set[str]:
    return {
        status for operation in (item.get, item.post, item.delete) if operation for status in operation.responses or ()
    }
