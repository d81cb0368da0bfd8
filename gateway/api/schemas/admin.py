"""The bodies of the admin API, and of sharing an adapter."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tunery.gateway.api.schemas.models import ResidentVersion

__all__ = [
    "AdapterDetails",
    "AdapterShare",
    "AdapterSummary",
    "AdapterSummaryList",
    "AdapterUnshare",
    "AliasMoved",
    "AliasPoint",
    "AliasRollback",
    "AuditList",
    "AuditRecord",
    "CreatedKey",
    "DeletedVersion",
    "EngineState",
    "Key",
    "KeyCreate",
    "KeyList",
    "KeyRotate",
    "ResidentAdapter",
    "ServerState",
    "Share",
    "ShareState",
    "TenantCounts",
    "TenantList",
    "Unshare",
    "VersionSummary",
]

TenantName = Annotated[str, Meta(max_length=64)]
TenantNames = Annotated[list[TenantName], Meta(min_length=1, max_length=1000)]
Number = Annotated[int, Meta(ge=1, le=2**53)]
Expected = Annotated[int, Meta(ge=0, le=2**53)]
Reason = Annotated[str, Meta(max_length=1000)]
Seconds = Annotated[float, Meta(ge=0, le=10 * 366 * 86_400)]


class KeyCreate(msgspec.Struct, frozen=True, kw_only=True):
    """A key to create. `adapters` are patterns such as `acme/*`, all of the tenant's by default; without `expires_in`
    (seconds) it is good until it is revoked."""

    tenant: TenantName
    scopes: Annotated[list[Literal["infer", "train", "publish", "metrics", "admin"]], Meta(min_length=1)]
    adapters: Annotated[list[str], Meta(max_length=100)] | None = None
    label: Annotated[str, Meta(max_length=128)] | None = None
    expires_in: Seconds | None = None


class KeyRotate(msgspec.Struct, frozen=True, kw_only=True):
    """How many seconds the old key stays good, a day by default."""

    overlap: Seconds | None = None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret; times are Unix times in seconds."""

    id: str
    object: Literal["key"] = "key"
    tenant: str
    label: str
    scopes: list[str]
    adapters: list[str]
    state: Literal["active", "expired", "revoked"]
    created_at: float
    created_by: str
    expires_at: float | None
    revoked_at: float | None
    replaced_by: str | None


class CreatedKey(Key, frozen=True, kw_only=True):
    """A key with the token that its owner sends, which is shown this once."""

    key: str


class KeyList(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /admin/v1/keys`, oldest first."""

    data: list[Key]
    object: Literal["list"] = "list"


class ShareState(msgspec.Struct, frozen=True, kw_only=True):
    """With whom an adapter is shared: with all where `tenants` is `["all"]`, with nobody where it is empty."""

    adapter: str
    object: Literal["adapter.share"] = "adapter.share"
    tenants: list[str]
    share_prefixes: bool


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """Tenants that may use an adapter too, or `["all"]`. With `only` nobody else may any more; `share_prefixes` lets all
    who use it share the KV cache of their prompts, and so learn by time what others have asked."""

    tenants: TenantNames
    only: bool | None = False
    share_prefixes: bool | None = None


class AdapterShare(Share, frozen=True, kw_only=True):
    """Which adapter of one's own to share, and with whom."""

    adapter: str


class Unshare(msgspec.Struct, frozen=True, kw_only=True):
    """Tenants that may use an adapter no more; null for all of them."""

    tenants: TenantNames | None = None


class AdapterUnshare(Unshare, frozen=True, kw_only=True):
    """Which adapter of one's own to share no more."""

    adapter: str


class AdapterSummary(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter of any tenant, on any base. `version` is what its bare name means now."""

    id: str
    object: Literal["adapter"] = "adapter"
    tenant: str
    version: int
    digest: str
    base: str
    method: str
    created_at: float
    shared_with: list[str]


class AdapterSummaryList(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /admin/v1/adapters`, by name."""

    data: list[AdapterSummary]
    object: Literal["list"] = "list"


class VersionSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A version of an adapter; `bytes` is the size of its files."""

    version: int
    digest: str
    base: str
    method: str
    aliases: list[str]
    bytes: int
    created_at: float


class AliasMoved(msgspec.Struct, frozen=True, kw_only=True):
    """A move of an alias; null stands for no version."""

    adapter: str
    object: Literal["alias.move"] = "alias.move"
    alias: str
    before: int | None
    after: int | None
    kind: Literal["move", "publish", "rollback", "drop"]
    actor: str
    reason: str
    moved_at: float


class AdapterDetails(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter with its versions, where its aliases point, and how they came to, oldest first."""

    id: str
    object: Literal["adapter"] = "adapter"
    tenant: str
    versions: list[VersionSummary]
    aliases: dict[str, int]
    history: list[AliasMoved]
    sharing: ShareState


class AliasPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The version to point an alias at, only if it points at `expected` now; 0: only if there is no such alias."""

    version: Number
    expected: Expected | None = None
    reason: Reason | None = None


class AliasRollback(msgspec.Struct, frozen=True, kw_only=True):
    """Where the alias must point now, if that is given, and why it goes back."""

    expected: Expected | None = None
    reason: Reason | None = None


class DeletedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version that was deleted."""

    id: str
    object: Literal["version"] = "version"
    deleted: bool = True


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A change: who (`actor`, a key by its id, and the `label` that it had), what, and of whose thing."""

    id: int
    object: Literal["audit.entry"] = "audit.entry"
    at: float
    tenant: str
    actor: str
    label: str
    action: str
    target: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    request_id: str
    source: str


class AuditList(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /admin/v1/audit`, newest first; `last_id` is what `after` takes for the next page."""

    data: list[AuditRecord]
    object: Literal["list"] = "list"
    last_id: int | None
    has_more: bool


class TenantCounts(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant: its adapters, their versions, its active keys, its jobs that have not ended, and its files in bytes."""

    id: str
    object: Literal["tenant"] = "tenant"
    adapters: int
    versions: int
    active_keys: int
    unfinished_jobs: int
    files: int
    file_bytes: int


class TenantList(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /admin/v1/tenants`, by name."""

    data: list[TenantCounts]
    object: Literal["list"] = "list"


class ResidentAdapter(ResidentVersion, frozen=True, kw_only=True):
    """A version in memory."""

    adapter: str
    digest: str


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """The engine: `ready`, or why it is not; the requests in it, and the share of its KV cache that is in use."""

    state: str
    restarts: int
    running: int
    waiting: int
    kv_used: float
    resident: list[ResidentAdapter]


class ServerState(msgspec.Struct, frozen=True, kw_only=True):
    """This gateway process: whether it shuts down, its requests in flight, and its engine."""

    object: Literal["server"] = "server"
    draining: bool
    in_flight: int
    base: str
    base_digest: str
    engine: EngineState
