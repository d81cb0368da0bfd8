"""Copy a version's files out of the registry, verifying their digests on the way."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tunery.registry.errors import StorageFailed, disk_code
from tunery.registry.records import FileEntry, Version
from tunery.registry.storage.blobs import BlobStore

__all__ = ["export"]


def export(blobs: BlobStore, version: Version, folder: Path, *, include: Collection[str] | None = None) -> None:
    """Copy a version's files, or those whose paths `include` names, into `folder`.

    Raise StorageFailed (artifact_damaged) where a stored file does not match its digest.
    """
    for entry in version.files:
        if include is None or entry.path in include:
            _copy(blobs, version, entry, folder / entry.path)


def _copy(blobs: BlobStore, version: Version, entry: FileEntry, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sound = blobs.copy_out(entry, target)
    except OSError as error:
        raise StorageFailed(
            f"{version.name}: {entry.path} could not be written: {error.strerror}", code=disk_code(error)
        ) from error
    if not sound:
        target.unlink()
        raise StorageFailed(
            f"{version.name}: {entry.path} is damaged: its bytes do not match its digest; see "
            f"`tunery adapters verify {version.name}`, and publish or import it again",
            code="artifact_damaged",
        )
