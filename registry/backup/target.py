"""Write a backup into a folder, or an archive. Until everything is on the disk the old backup, or none, is there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from tunery.registry.backup.archive import SUFFIXES, write_archive
from tunery.registry.backup.contents import Item
from tunery.registry.backup.files import chunks_of, failing, name_file, write_new
from tunery.registry.backup.manifest import MANIFEST, BackupManifest, Entry, object_name, read_manifest
from tunery.registry.errors import Conflict, InvalidInput, StorageFailed
from tunery.registry.storage import leases
from tunery.registry.storage.disk import sync, write_durably

__all__ = ["ArchiveTarget", "BackupTarget", "FolderTarget", "Saved", "open_target"]

_UNFINISHED = f".{MANIFEST}."
"""What the name of a manifest begins with while it is written."""
Describe = Callable[[Mapping[str, str]], BackupManifest]
"""The manifest, given what is wrong with blobs that are not backed up, by sha256."""


class Saved(msgspec.Struct, frozen=True):
    """How much was written, without what was there already."""

    files: int
    bytes: int


class BackupTarget(Protocol):
    """Where a backup goes."""

    def known(self) -> Mapping[str, Entry]:
        """The entries of the backup that is there, by path."""

    def save(self, items: tuple[Item, ...], describe: Describe) -> tuple[BackupManifest, Saved]:
        """Write everything, and the manifest so that it counts from then on; raise StorageFailed, and change nothing."""


@contextlib.contextmanager
def open_target(path: Path) -> Iterator[BackupTarget]:
    """The target at a path: an archive where it ends in .tar, .tar.gz or .tgz, else a folder.

    Raise Conflict where the name is taken, or another backup to the folder runs.
    """
    if path.name.endswith(SUFFIXES) and not path.is_dir():
        if path.exists():
            raise Conflict(f"{path} exists already; give the backup another name, or remove it", code="backup_exists")
        if not path.parent.is_dir():
            raise InvalidInput(f"{path.parent} is not a folder; make it first", param="target")
        yield ArchiveTarget(path)
        return
    with failing(path, "written", full="the disk is full"):
        _check_folder(path)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with leases.exclusive(path, wait=False) as free:
        if not free:
            raise Conflict(f"another backup to {path} runs; wait for it", code="backup_runs")
        yield FolderTarget(path)


def _check_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise InvalidInput(f"{path} is a file; name a folder, or a file that ends in .tar or .tar.gz", param="target")
    names = {each.name for each in path.iterdir()} if path.is_dir() else set()
    if any(name not in (MANIFEST, "objects") and not name.startswith(_UNFINISHED) for name in names):
        raise Conflict(f"{path} is not empty and holds no backup; choose another folder", code="backup_exists")


class FolderTarget:
    """A folder of objects, to which only those are added that it does not have."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = _manifest_in(folder)

    def known(self) -> Mapping[str, Entry]:
        """See `BackupTarget`."""
        return {entry.path: entry for entry in self._before.entries} if self._before is not None else {}

    def save(self, items: tuple[Item, ...], describe: Describe) -> tuple[BackupManifest, Saved]:
        """See `BackupTarget`; raise Conflict where the folder is another registry's."""
        if self._before is not None and self._before.registry != describe({}).registry:
            raise Conflict(
                f"{self._folder} holds a backup of another registry; choose another folder", code="backup_exists"
            )
        damaged: dict[str, str] = {}
        files = written = 0
        with failing(self._folder, "written", full="the disk is full"):
            for item in items:
                if not self._has(item.entry):
                    if (problem := self._add(item)) is not None:
                        damaged[item.entry.sha256] = problem
                        continue
                    files, written = files + 1, written + item.entry.size
            manifest = describe(damaged)
            for folder in {(self._folder / object_name(entry.sha256)).parent for entry in manifest.entries}:
                sync(folder)
            write_durably(self._folder / MANIFEST, _encoded(manifest))
            self._prune(manifest)
        return manifest, Saved(files, written)

    def _has(self, entry: Entry) -> bool:
        path = self._folder / object_name(entry.sha256)
        return path.is_file() and path.stat().st_size == entry.size

    def _add(self, item: Item) -> str | None:
        """Copy one file; what is wrong with its bytes, or None."""
        path = self._folder / object_name(item.entry.sha256)
        staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            write_new(staged, _checked(item), limit=item.entry.size)
            staged.replace(path)
        except _Wrong as error:
            return str(error)
        finally:
            staged.unlink(missing_ok=True)
        return None

    def _prune(self, manifest: BackupManifest) -> None:
        """Delete what only older backups needed, or an interrupted one left."""
        needed = manifest.objects.keys()
        for path in [*(self._folder / "objects").glob("*/*"), *self._folder.glob(f"{_UNFINISHED}*")]:
            if path.name not in needed:
                path.unlink(missing_ok=True)


class ArchiveTarget:
    """A new archive, which gets its name when it is finished."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def known(self) -> Mapping[str, Entry]:
        """See `BackupTarget`."""
        return {}

    def save(self, items: tuple[Item, ...], describe: Describe) -> tuple[BackupManifest, Saved]:
        """Blobs are read twice: the manifest at the beginning says which are sound."""
        blobs = [item for item in items if item.entry.path.startswith("blobs/")]
        damaged = {item.entry.sha256: problem for item in blobs if (problem := _problem(item)) is not None}
        manifest = describe(damaged)
        sources = {item.entry.sha256: item for item in items}
        head = _encoded(manifest)
        self._remove_leftovers()
        staged = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}.partial")
        with failing(self._path, "written", full="the disk is full"):
            descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with leases.shared(staged):
                    members = (
                        (object_name(sha256), entry.size, _checked(sources[sha256]))
                        for sha256, entry in manifest.objects.items()
                    )
                    write_archive(descriptor, self._path.name, [(MANIFEST, len(head), [head]), *members])
                    name_file(staged, self._path)
            except _Wrong as error:
                raise StorageFailed(f"{error}; nothing was written: back up again") from error
            except FileExistsError as error:
                raise Conflict(f"{self._path} was made meanwhile; nothing was changed", code="backup_exists") from error
            finally:
                staged.unlink(missing_ok=True)
        return manifest, Saved(len(manifest.objects), sum(entry.size for entry in manifest.objects.values()))

    def _remove_leftovers(self) -> None:
        """Remove what a backup to the same name left that was killed."""
        for path in self._path.parent.glob(f".{self._path.name}.*.partial"):
            with leases.exclusive(path, wait=False) as free:
                if free:
                    path.unlink(missing_ok=True)


class _Wrong(Exception):
    """A file cannot be read, or is not what it was."""


def _checked(item: Item) -> Iterator[bytes]:
    """The bytes of a file; raise _Wrong, at their end at the latest, where they are not those that were announced."""
    entry, digest = item.entry, hashlib.sha256()
    try:
        for chunk in chunks_of(item.source, entry.size):
            digest.update(chunk)
            yield chunk
    except OSError as error:
        raise _Wrong(f"{entry.path} cannot be read ({error.strerror})") from error
    if digest.hexdigest() != entry.sha256:
        raise _Wrong(f"{entry.path} is damaged: its bytes do not match its digest")


def _problem(item: Item) -> str | None:
    """What is wrong with a file, read whole; None where nothing is."""
    try:
        for _ in _checked(item):
            continue
    except _Wrong as error:
        return str(error)
    return None


def _manifest_in(folder: Path) -> BackupManifest | None:
    """The manifest of the backup that is there. One that is damaged counts as none; one too new is refused."""
    try:
        return read_manifest((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    except InvalidInput as error:
        if error.code == "backup_too_new":
            raise
        return None


def _encoded(manifest: BackupManifest) -> bytes:
    return msgspec.json.encode(manifest) + b"\n"
