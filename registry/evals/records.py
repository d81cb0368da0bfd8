"""Evaluations as records."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = ["EvalItem", "EvalRun", "Evaluation", "ItemState", "Measurement", "RunState"]

RunState = Literal["queued", "in_progress", "completed", "failed", "canceled"]
ItemState = Literal["pass", "fail", "error"]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Graders to measure models with. `source` and `criteria` are as OpenAI has them, `details` the client's metadata."""

    id: str
    tenant: str
    name: str
    source: dict[str, Any]
    criteria: list[dict[str, Any]]
    created_at: float
    updated_at: float
    details: dict[str, str] | None = None


class EvalRun(msgspec.Struct, frozen=True, kw_only=True):
    """Graders applied to the answers of one or two models to `row_count` rows of a file; Unix times in s.

    `request` is what the client sent, `plan` what is done. Only a server with the base `base_digest` in memory may claim
    the run; `fence` counts the claims, `lease_until` is when the claim ends unless it is renewed, and `crashes` how many claimants in a row were gone
    without storing a row.
    """

    id: str
    eval: str
    name: str
    state: RunState
    request: dict[str, Any]
    plan: dict[str, Any]
    data_name: str
    data_sha256: str
    row_count: int
    base_digest: str
    created_at: float
    updated_at: float
    details: dict[str, str] | None = None
    owner: str | None = None
    fence: int = 0
    lease_until: float | None = None
    crashes: int = 0
    finished_at: float | None = None
    error: str | None = None
    code: str | None = None
    summary: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will be done."""
        return self.state not in ("queued", "in_progress")


class EvalItem(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one row; `position` counts from 0."""

    run: str
    position: int
    state: ItemState
    data: dict[str, Any]
    created_at: float


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What a run that finished `at` a time measured of a version, `against` another model if it was a comparison."""

    adapter: str
    number: int
    run: str
    digest: str
    name: str
    data_name: str
    data_sha256: str
    against: str | None
    results: dict[str, Any]
    at: float = 0.0
