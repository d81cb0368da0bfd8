"""Open a backup for reading, whichever form it has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tunery.registry.backup.archive import ArchiveSource
from tunery.registry.backup.files import chunks_of
from tunery.registry.backup.manifest import MANIFEST, MAX_MANIFEST, BackupManifest, object_name, read_manifest
from tunery.registry.errors import InvalidInput, NotFound, StorageFailed

__all__ = ["BackupSource", "open_source"]


class BackupSource(Protocol):
    """A backup: its manifest, and each different content once."""

    manifest: BackupManifest

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def objects(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The sha256 that each object should have, and its bytes, which must be read to their end before the next."""


class FolderSource:
    """A folder that `FolderTarget` wrote."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        manifest = folder / MANIFEST
        if not manifest.is_file():
            raise NotFound(f"{folder} has no {MANIFEST}, so there is no finished backup in it", code="backup_not_found")
        if manifest.stat().st_size > MAX_MANIFEST:
            raise InvalidInput(f"{manifest} is larger than any manifest", code="backup_refused")
        self.manifest: BackupManifest = read_manifest(manifest.read_bytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def objects(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """See `BackupSource`."""
        for sha256, entry in self.manifest.objects.items():
            path = self._folder / object_name(sha256)
            if path.is_symlink() or not path.is_file():
                raise StorageFailed(f"{path} of the backup is missing; back up again", code="backup_damaged")
            yield sha256, chunks_of(path, entry.size + 1)


def open_source(path: Path) -> BackupSource:
    """A backup in a folder or an archive.

    Raise NotFound where there is none, and InvalidInput for one that is too new or unsafe.
    """
    if path.is_dir():
        return FolderSource(path)
    if not path.is_file():
        raise NotFound(f"there is no backup at {path}", code="backup_not_found")
    return ArchiveSource(path)
