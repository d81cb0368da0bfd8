"""Store files by their sha256.

A blob appears under its name by one rename, after its bytes are on the disk, so that none is ever half written. A
publisher holds a lease, which names each blob before it appears, so that no collection removes it before a version
names it.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tunery.registry.errors import StorageFailed, disk_code
from tunery.registry.records import FileEntry
from tunery.registry.storage import leases
from tunery.registry.storage.digest import file_digest
from tunery.registry.storage.disk import sync

__all__ = ["BlobStore"]

_CHUNK = 1 << 20
_NAMES = "blobs"
"""A lease's list of blobs, one a line."""


class BlobStore:
    """A folder of blobs, `ab/abcdef…`, and a staging folder on the same file system."""

    def __init__(self, folder: Path, staging: Path) -> None:
        self._folder = folder
        self._staging = staging

    def path(self, sha256: str) -> Path:
        """Where a blob is stored, or would be."""
        return self._folder / sha256[:2] / sha256

    @contextmanager
    def lease(self) -> Iterator[Path]:
        """A staging folder to store blobs under; they are safe from collections until the block ends."""
        try:
            with leases.staged(self._staging, "publish") as lease:
                yield lease
        except OSError as error:
            if isinstance(error, StorageFailed):
                raise
            raise StorageFailed(_reason(error, str(self._staging)), code=disk_code(error)) from error

    @contextmanager
    def closed(self) -> Iterator[set[str]]:
        """Keep new blobs from appearing while the block runs; yields the digests of those that leases name."""
        with leases.exclusive(self._folder, wait=True):
            yield {sha256 for lease in self._staging.glob("publish-*") for sha256 in _named(lease)}

    def put(self, *sources: Path, name: str, lease: Path) -> FileEntry:
        """Copy a file in, or several as one, and return its entry under `name`; raise StorageFailed when the disk will
        not take it."""
        staged = lease / f"blob-{uuid.uuid4().hex}"
        try:
            sha256, size = _copy(sources, staged)
            target = self.path(sha256)
            with leases.shared(self._folder):
                with (lease / _NAMES).open("a") as names:
                    names.write(f"{sha256}\n")
                target.parent.mkdir(parents=True, exist_ok=True)
                # Also over an existing blob: that repairs a damaged one, and makes it look new to a collection.
                staged.rename(target)
            sync(target.parent)
            sync(self._folder)
        except OSError as error:
            raise StorageFailed(_reason(error, name), code=disk_code(error)) from error
        finally:
            staged.unlink(missing_ok=True)
        return FileEntry(name, sha256, size)

    def hold(self, digests: Collection[str], *, lease: Path) -> set[str]:
        """Keep stored blobs from collections until the lease ends; returns the digests of which there is none."""
        with leases.shared(self._folder), (lease / _NAMES).open("a") as names:
            names.writelines(f"{sha256}\n" for sha256 in digests)
        return {sha256 for sha256 in digests if not self.path(sha256).is_file()}

    def problem(self, entry: FileEntry) -> str | None:
        """What is wrong with a stored file, or None; reads it whole."""
        try:
            digest, _ = file_digest(self.path(entry.sha256))
        except OSError as error:
            return f"cannot be read ({os.strerror(error.errno or 0)})"
        return None if digest == entry.sha256 else "is damaged: its bytes no longer match its digest"

    def copy_out(self, entry: FileEntry, target: Path) -> bool:
        """Copy a stored file out; returns whether the copy matches its digest."""
        digest = hashlib.sha256()
        with self.path(entry.sha256).open("rb") as reader, target.open("wb") as writer:
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                writer.write(chunk)
        return digest.hexdigest() == entry.sha256

    def all(self) -> Iterator[tuple[str, Path]]:
        """Every blob's digest and path."""
        for path in sorted(self._folder.glob("??/*")):
            yield path.name, path

    def count(self) -> int:
        """How many blobs there are."""
        return sum(1 for _ in self._folder.glob("??/*"))


def _named(lease: Path) -> list[str]:
    """The digests that a lease names; none when its holder is gone."""
    with leases.exclusive(lease, wait=False) as free:
        try:
            return [] if free else (lease / _NAMES).read_text().split()
        except OSError:
            return []


def _copy(sources: Iterable[Path], target: Path) -> tuple[str, int]:
    """Copy files one after the other and sync them; hex sha256 and size in bytes of what was copied."""
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as writer:
        for source in sources:
            with source.open("rb") as reader:
                while chunk := reader.read(_CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
                    writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest(), size


def _reason(error: OSError, name: str) -> str:
    if disk_code(error) == "disk_full":
        return f"the disk is full: {name} could not be stored; free some space and try again, nothing was changed"
    return f"{name} could not be stored: {error.strerror}; nothing was changed"
