"""Owns where state lives: one folder, `TUNERY_HOME` (default `~/.tunery`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tunery.registry.errors import StorageFailed
from tunery.registry.storage.disk import disk_code

__all__ = ["Home"]


class Home(msgspec.Struct, frozen=True):
    """The folder that holds everything Tunery keeps."""

    root: Path

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Home:
        """The home that `TUNERY_HOME` names, made absolute."""
        return cls(Path(environ.get("TUNERY_HOME") or "~/.tunery").expanduser().absolute())

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.root / "registry.db"

    @property
    def reserve(self) -> Path:
        """Room that is given back when the disk is full, so that versions can still be removed."""
        return self.root / "reserve"

    @property
    def blobs(self) -> Path:
        """Files by their sha256."""
        return self.root / "blobs"

    @property
    def manifests(self) -> Path:
        """What the database says of versions, aliases and bases, beside the blobs; see `manifests`."""
        return self.blobs / "manifests"

    @property
    def staging(self) -> Path:
        """Half-written things; whatever is old here may be deleted."""
        return self.root / "staging"

    @property
    def bases(self) -> Path:
        """Base models by digest."""
        return self.root / "bases"

    @property
    def packed(self) -> Path:
        """Bases as the engine maps them into memory, by digest; made again where they are missing."""
        return self.root / "packed"

    def checked(self, digest: str) -> Path:
        """How the files of a base looked when they were last compared with its digest."""
        return self.packed / f"{digest}-checked.json"

    @property
    def jobs(self) -> Path:
        """One folder a job: its manifest, metrics and checkpoints."""
        return self.root / "jobs"

    def ensure(self) -> None:
        """Make the folders; raise StorageFailed where that cannot be done."""
        try:
            for folder in (self.blobs, self.staging, self.bases, self.jobs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageFailed(
                f"{self.root} cannot be used as TUNERY_HOME: {error.strerror}", code=disk_code(error)
            ) from error
