"""The limits there are, what each is for, and how they are configured.

A limit of 0 is none. The configured ones hold for every tenant that has no limit of its own; see `limits.overrides`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tunery.registry.values import about

__all__ = ["Limits", "LimitsSettings"]

# Larger numbers are none that SQLite or a header's reader could hold.
Limit = Annotated[int, Meta(ge=0, le=2**53)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant, or a key, may use; 0 for as much as there is."""

    requests_per_minute: Annotated[Limit, about("Inference requests a minute.")] = 0
    tokens_per_minute: Annotated[
        Limit,
        about("Tokens a minute: a request counts with its prompt and max_tokens, and at its end with what it used."),
    ] = 0
    concurrent_requests: Annotated[Limit, about("Inference requests that are answered at once.")] = 0
    queue_share: Annotated[
        float, Meta(ge=0, le=1), about("The share of all places for running and waiting requests, such as 0.25.")
    ] = 0.0
    tokens_per_month: Annotated[Limit, about("Tokens a calendar month (UTC), batches and evaluations among them.")] = 0
    training_jobs: Annotated[Limit, about("Training jobs that are queued or run.")] = 0
    compute_seconds_per_month: Annotated[Limit, about("Seconds that jobs may train in a calendar month (UTC).")] = 0
    storage_bytes: Annotated[Limit, about("Bytes of files and versions.")] = 0


class LimitsSettings(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of every tenant that has none of its own, where they are counted, and how long usage is kept."""

    store: Annotated[
        Literal["memory", "database", "redis"],
        about("Where requests and tokens are counted: memory for one gateway, database or redis for several."),
    ] = "memory"
    redis_url: Annotated[str, about("The Redis that counts, such as redis://localhost:6379/0.")] = ""
    usage_days: Annotated[
        int, Meta(ge=1, le=36_500), about("Days that the usage of each request is kept; its sums by the hour stay.")
    ] = 92
