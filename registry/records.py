"""Frozen records that the registry takes and gives out. What is done with them is in the modules beside the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

__all__ = [
    "AliasMove",
    "Base",
    "Checkpoint",
    "Batch",
    "BatchCounts",
    "DataFile",
    "DataUse",
    "FileEntry",
    "Job",
    "JobRequest",
    "MoveKind",
    "NewVersion",
    "StoredEvent",
    "Upload",
    "UploadPart",
    "Version",
    "WebhookEvent",
]

MoveKind = Literal["move", "publish", "rollback", "drop"]
"""Why an alias moved: by a command, with a new version, back to an earlier one, or because it was deleted."""


class FileEntry(msgspec.Struct, frozen=True, order=True):
    """One file of a version: `path` is relative and POSIX, `sha256` is hex, `size` is in bytes."""

    path: str
    sha256: str
    size: int


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """A base model pinned by content.

    `digest` covers weights, tokenizer, chat template and config; `source` is what the user named (a Hub id
    at a revision, a folder, a GGUF file); `path` is the folder of safetensors and tokenizer files that holds it.
    """

    name: str
    digest: str
    source: str
    path: str
    parameters: int
    added_at: float


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable fine-tune of an adapter.

    `digest` is sha256 over its sorted files and normalised configuration. `files` are in PEFT layout
    (`adapter_config.json`, `adapter_model.safetensors`) plus whatever else the trainer kept, such as `model/…` for
    a full fine-tune's exact weights. `manifest` says where it came from and `metrics` how good it is.
    """

    adapter: str
    number: int
    digest: str
    base: str
    base_digest: str
    method: str
    files: tuple[FileEntry, ...]
    manifest: dict[str, Any]
    metrics: dict[str, float]
    created_at: float
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`tenant/name@number`."""
        return f"{self.adapter}@{self.number}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)


class NewVersion(msgspec.Struct, frozen=True, kw_only=True):
    """What to publish: a folder in PEFT layout as the next version of an adapter.

    `alias` is pointed at the new version. `trust_base` accepts an adapter whose configuration names another base than
    `base`; its shapes must fit all the same. `report` is a folder whose files are stored under `report/` and are not
    part of the digest.
    """

    adapter: str
    folder: Path
    base: Base
    method: str
    manifest: dict[str, Any]
    metrics: dict[str, float]
    actor: str
    alias: str | None = None
    trust_base: bool = False
    report: Path | None = None


class AliasMove(msgspec.Struct, frozen=True, kw_only=True):
    """One move of an alias; `before` or `after` is None when the alias was made or dropped by it."""

    adapter: str
    alias: str
    before: int | None
    after: int | None
    moved_at: float
    actor: str
    reason: str = ""
    kind: MoveKind = "move"


class DataUse(msgspec.Struct, frozen=True, kw_only=True):
    """A data file that a version was trained on; `role` is `train` or `held-out`, `name` the file's name then."""

    adapter: str
    number: int
    sha256: str
    name: str
    role: str

    @property
    def version(self) -> str:
        """`tenant/name@number`."""
        return f"{self.adapter}@{self.number}"


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a queued job trains, by names that mean the same on every machine that shares the registry.

    `base` is a digest; `parent` and `data` are exact too, a version with its number and ids of uploaded files.
    `force` publishes a version that fails a gate. `parameters` are the trainer's, as they were given; `learning_rate_multiplier` multiplies the learning rate that is
    chosen where none is given. `model_name` is what the version is called besides its
    reference, in OpenAI's form.
    """

    adapter: str
    trainer: str
    base: str
    data: tuple[str, ...]
    validation: str | None = None
    parent: str | None = None
    alias: str | None = None
    allow: tuple[str, ...] = ()
    force: bool = False
    device: str = "auto"
    parameters: dict[str, Any] = {}
    learning_rate_multiplier: float = 1.0
    actor: str = ""
    model_name: str | None = None

    @property
    def key(self) -> str | None:
        """The id of the API key that submitted it, if it was one."""
        kind, _, key = self.actor.partition(":")
        return key if kind == "key" else None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a trainer; `state` is queued, running, paused, succeeded, failed or cancelled; Unix times in s.

    A job with a `request` waits in the queue until a worker claims it. `fence` counts the claims, `lease_until` is when
    the claim ends unless it is renewed, and `wanted` is what the process that runs it is asked to do: pause or cancel.
    `waiting` says why a queued job does not run yet, `code` is that of the `error`, `progress` how far it is, and
    `details` are kept for the client that submitted it.
    """

    id: str
    adapter: str
    trainer: str
    state: str
    created_at: float
    updated_at: float
    version: int | None = None
    error: str | None = None
    tenant: str = ""
    request: JobRequest | None = None
    details: dict[str, Any] | None = None
    priority: int = 0
    wanted: str | None = None
    waiting: str | None = None
    owner: str | None = None
    fence: int = 0
    lease_until: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    code: str | None = None
    progress: dict[str, Any] | None = None


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event in a job's history: `number` counts from 1 without gaps, `kind` and `data` are the event's own."""

    job: str
    number: int
    at: float
    level: str
    kind: str
    message: str
    data: dict[str, Any]


class DataFile(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file; `status` is uploaded, processed or error, `details` the first findings in words."""

    id: str
    tenant: str
    purpose: str
    name: str
    sha256: str
    size: int
    status: str
    created_at: float
    details: str | None = None
    expires_at: float | None = None


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a job had trained after a step, kept as a model: `name` is the job's model name with `:ckpt-step-N`.

    Its files are in PEFT layout. It has passed the checks of an adapter's files, not the gates of a version.
    """

    id: str
    job: str
    step: int
    name: str
    adapter: str
    base: str
    base_digest: str
    method: str
    digest: str
    files: tuple[FileEntry, ...]
    metrics: dict[str, float]
    created_at: float

    @property
    def version(self) -> Version:
        """The checkpoint as what can be served; its number is 0, which no published version has."""
        return Version(
            adapter=self.adapter,
            number=0,
            digest=self.digest,
            base=self.base,
            base_digest=self.base_digest,
            method=self.method,
            files=self.files,
            manifest={"job": self.job, "step": self.step},
            metrics=self.metrics,
            created_at=self.created_at,
        )


class StoredResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A response that was to be stored: `body` is the answer, `items` the conversation before it; Unix times in s."""

    id: str
    tenant: str
    body: dict[str, Any]
    items: list[dict[str, Any]]
    created_at: float
    expires_at: float


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A file that comes in parts; `status` is pending, completed, cancelled or expired.

    `size` is what the parts have together in the end, `file_expires_after` seconds how long the file is kept, `parts`
    are those that completed it, and `file` is what became of them.
    """

    id: str
    tenant: str
    purpose: str
    name: str
    mime_type: str
    size: int
    status: str
    created_at: float
    expires_at: float
    file_expires_after: float | None = None
    parts: tuple[str, ...] | None = None
    file: str | None = None


class UploadPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an upload."""

    id: str
    upload: str
    size: int
    created_at: float


class BatchCounts(msgspec.Struct, frozen=True, kw_only=True):
    """A batch's requests, those answered and those that failed, and the tokens of the answers."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Requests from a file for one endpoint; Unix times in s.

    `state` is validating, in_progress, finalizing, completed, failed, expired, cancelling or cancelled; `times` says
    when each of them began, and `ended` whether it stays so. `errors` say why it failed, `model` is what all requests
    name (None for several), and `details` are kept for the client. `adapters` are patterns of the adapters that it may
    use, None for all; `key` is the id of the API key that made it. A gateway claims a batch as a worker does a job:
    `fence` counts the claims, and the last one holds until `lease_until`.
    """

    id: str
    tenant: str
    endpoint: str
    input_file: str
    state: str
    created_at: float
    expires_at: float
    ended: bool = False
    times: dict[str, float] = {}
    adapters: tuple[str, ...] | None = None
    key: str | None = None
    details: dict[str, Any] | None = None
    output_expires_after: float | None = None
    model: str | None = None
    counts: BatchCounts = BatchCounts()
    errors: tuple[dict[str, Any], ...] | None = None
    output_file: str | None = None
    error_file: str | None = None
    owner: str | None = None
    fence: int = 0
    lease_until: float | None = None


class WebhookEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that webhooks are sent about: its id (`evt_…`), type, time in Unix seconds, and what it is about."""

    id: str
    type: str
    at: float
    data: dict[str, Any]
