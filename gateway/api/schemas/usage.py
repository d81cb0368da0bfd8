"""The bodies of OpenAI's usage endpoints. What Tunery does not have, such as users and tiers, is null."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "CompletionsBucket",
    "CompletionsPage",
    "CompletionsResult",
    "EmbeddingsBucket",
    "EmbeddingsPage",
    "EmbeddingsResult",
]


class CompletionsResult(msgspec.Struct, frozen=True, kw_only=True):
    """What requests for chat, completions and responses used. A field that was not grouped by is null."""

    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int
    output_tokens: int
    input_cached_tokens: int
    input_uncached_tokens: int
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    num_model_requests: int
    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    batch: bool | None = None
    service_tier: str | None = None


class EmbeddingsResult(msgspec.Struct, frozen=True, kw_only=True):
    """What requests for embeddings used. A field that was not grouped by is null."""

    object: Literal["organization.usage.embeddings.result"] = "organization.usage.embeddings.result"
    input_tokens: int
    num_model_requests: int
    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None


class CompletionsBucket(msgspec.Struct, frozen=True, kw_only=True):
    """A span of time, in Unix seconds."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[CompletionsResult]


class EmbeddingsBucket(msgspec.Struct, frozen=True, kw_only=True):
    """A span of time, in Unix seconds."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[EmbeddingsResult]


class CompletionsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Buckets, oldest first; `next_page` is the `page` to ask for then."""

    object: Literal["page"] = "page"
    data: list[CompletionsBucket]
    has_more: bool
    next_page: str | None


class EmbeddingsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Buckets, oldest first; `next_page` is the `page` to ask for then."""

    object: Literal["page"] = "page"
    data: list[EmbeddingsBucket]
    has_more: bool
    next_page: str | None
