"""The bodies of the batch endpoints, as OpenAI has them."""

from __future__ import annotations

from typing import Literal

import msgspec

from tunery.gateway.api.schemas.files import ExpiresAfter
from tunery.gateway.api.schemas.fine_tuning import Metadata
from tunery.gateway.api.schemas.responses import CachedTokens

__all__ = [
    "BatchCreate",
    "BatchError",
    "BatchErrors",
    "BatchList",
    "BatchObject",
    "BatchUsage",
    "ReasoningTokens",
    "RequestCounts",
]

EndpointPath = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
"""The keys of `inference.ENDPOINTS`, which a test compares."""


class BatchCreate(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/batches`. `output_expires_after` is for the result files."""

    input_file_id: str
    endpoint: EndpointPath
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a line of the input file, counted from 1, or with the whole of it."""

    code: str
    line: int | None = None
    message: str
    param: str | None = None


class BatchErrors(msgspec.Struct, frozen=True, kw_only=True):
    """Why a batch failed."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests there are, have been answered, and have failed."""

    total: int
    completed: int
    failed: int


class ReasoningTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Always 0: reasoning is not counted by itself."""

    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of all answers."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class BatchObject(msgspec.Struct, frozen=True, kw_only=True):
    """A batch; each time is that at which the state of its name began. `model` is null if requests name several."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class BatchList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
