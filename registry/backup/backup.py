"""Back a registry up while servers, workers and collections use it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import msgspec

from tunery.registry.backup.contents import Contents, gather
from tunery.registry.backup.manifest import DATABASE, FORMAT, BackupManifest
from tunery.registry.backup.snapshot import is_read_only
from tunery.registry.backup.target import open_target
from tunery.registry.errors import InvalidInput, NotFound, StorageFailed
from tunery.registry.home import Home
from tunery.registry.storage.blobs import BlobStore

__all__ = ["BackedUp", "back_up"]


class BackedUp(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds, and how much of that was written now.

    `incomplete` says which files of the registry are missing or damaged and so are not in it; `outside` names bases
    whose files are not in the home and so are not either.
    """

    target: str
    files: int
    bytes: int
    files_written: int
    bytes_written: int
    incomplete: tuple[str, ...]
    outside: tuple[str, ...]


def back_up(home: Home, target: Path, *, now: float, checkpoints: bool = False) -> BackedUp:
    """Write everything in `home` that cannot be made again to a folder or a new archive.

    `checkpoints` adds those that unfinished jobs go on from. Blobs that are missing or damaged do not stop it, and are
    named in the result. Raise NotFound (registry_not_found), Conflict (backup_exists, backup_runs), or StorageFailed,
    after which an older backup at the same place is as it was.
    """
    target = target.expanduser().absolute()
    if not home.database.is_file():
        raise NotFound(f"there is no registry in {home.root}; check TUNERY_HOME", code="registry_not_found")
    if target.resolve().is_relative_to(home.root.resolve()):
        raise InvalidInput(f"{target} is inside {home.root}; choose a place outside, on another disk", param="target")
    blobs = BlobStore(home.blobs, home.staging)
    with open_target(target) as place, _lease(home, blobs) as lease:
        contents = gather(home, blobs, lease, checkpoints=checkpoints, known=place.known())

        def describe(damaged: Mapping[str, str]) -> BackupManifest:
            return _manifest(contents, damaged, now=now, checkpoints=checkpoints)

        manifest, saved = place.save(contents.items, describe)
    return BackedUp(
        target=str(target),
        files=len(manifest.entries),
        bytes=manifest.size,
        files_written=saved.files,
        bytes_written=saved.bytes,
        incomplete=tuple(manifest.incomplete.values()),
        outside=manifest.outside,
    )


@contextmanager
def _lease(home: Home, blobs: BlobStore) -> Iterator[Path]:
    """A lease of the blobs; on a disk that is read-only nothing is collected, and any folder will do."""
    if is_read_only(home.root):
        with tempfile.TemporaryDirectory(prefix="tunery-backup-") as folder:
            yield Path(folder)
    else:
        with blobs.lease() as lease:
            yield lease


def _manifest(contents: Contents, damaged: Mapping[str, str], *, now: float, checkpoints: bool) -> BackupManifest:
    entries = tuple(item.entry for item in contents.items if item.entry.sha256 not in damaged)
    if not entries or entries[0].path != DATABASE:
        raise StorageFailed("the copy of the database cannot be read back: check the disk of TUNERY_HOME")
    return BackupManifest(
        format=FORMAT,
        created_at=now,
        tunery=version("tunery"),
        revision=contents.revision,
        registry=contents.registry,
        checkpoints=checkpoints,
        entries=entries,
        incomplete={**contents.missing, **damaged},
        outside=contents.outside,
    )
