"""Say where everything is kept: one folder, `TUNERY_HOME` (default `~/.tunery`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tunery.registry.errors import StorageFailed, disk_code

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
        """A file that is deleted when the disk is full, so that there is room to remove versions."""
        return self.root / "reserve"

    @property
    def blobs(self) -> Path:
        """Files of versions, by sha256."""
        return self.root / "blobs"

    @property
    def manifests(self) -> Path:
        """Copies of what the database holds, beside the blobs; see `storage.manifests`."""
        return self.blobs / "manifests"

    @property
    def staging(self) -> Path:
        """Unfinished files; anything old in here may be deleted."""
        return self.root / "staging"

    @property
    def uploads(self) -> Path:
        """A folder for each unfinished upload: its parts."""
        return self.root / "uploads"

    @property
    def batches(self) -> Path:
        """A folder for each batch that runs: the answers so far."""
        return self.root / "batches"

    @property
    def bases(self) -> Path:
        """Base models by digest."""
        return self.root / "bases"

    @property
    def packed(self) -> Path:
        """Bases in the layout that the engine maps into memory, by digest; made again when missing."""
        return self.root / "packed"

    def base_stamps(self, digest: str) -> Path:
        """The record of how a base's files looked when they last matched its digest; see `base_files`."""
        return self.packed / f"{digest}-checked.json"

    @property
    def jobs(self) -> Path:
        """A folder for each job: its manifest, metrics and checkpoints."""
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
