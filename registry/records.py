"""Frozen records that the registry takes and gives out. What is done with them is in the modules beside the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

__all__ = ["AliasMove", "Base", "DataUse", "FileEntry", "Job", "MoveKind", "NewVersion", "Version"]

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


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a trainer; `state` is queued, running, paused, succeeded, failed or cancelled; Unix times in s."""

    id: str
    adapter: str
    trainer: str
    state: str
    created_at: float
    updated_at: float
    version: int | None = None
    error: str | None = None
