"""What is recorded of each use, and what is asked of the records."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["COMPLETIONS", "EMBEDDINGS", "TRAINING", "GroupField", "UsageQuery", "UsageRecord", "UsageSum"]

COMPLETIONS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
EMBEDDINGS = ("/v1/embeddings",)
TRAINING = "training"
"""The endpoint of what jobs compute."""

GroupField = Literal["tenant", "key", "model", "digest", "endpoint", "batch"]


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one request used, or a job while it ran; `at` is when that ended, in Unix seconds.

    `model` and `digest` are the reference and the digest of the version that answered, or of several, or the base's name
    and "". `key` is "" where no key was used. `cached_tokens` are among `input_tokens`. `outcome` is completed, cancelled
    or the code of an error.
    """

    at: float
    tenant: str
    key: str = ""
    model: str
    digest: str = ""
    endpoint: str
    batch: bool = False
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    milliseconds: int = 0
    request_id: str = ""
    outcome: str = "completed"


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which sums to make: of what ended from `start` to before `end`, in Unix seconds, by spans of `width` seconds and by
    the fields of `group`.

    With a `width` of 0 there is one span. Widths that are no multiple of an hour are answered from the records, which are
    kept for some days only; all others from sums of whole hours, the hour of `start` among them. An empty selection means
    all.
    """

    start: int
    end: int
    width: int = 0
    group: tuple[GroupField, ...] = ()
    tenants: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    batch: bool | None = None


class UsageSum(msgspec.Struct, frozen=True, kw_only=True):
    """The sums of one span and one value of each field that was grouped by; the other fields are None."""

    start: int
    tenant: str | None = None
    key: str | None = None
    model: str | None = None
    digest: str | None = None
    endpoint: str | None = None
    batch: bool | None = None
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    milliseconds: int = 0
