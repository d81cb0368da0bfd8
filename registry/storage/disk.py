"""Write files durably, and go on as well as possible on a full disk.

`write_durably` is our own because no kept library syncs the folder as well as the file, without which a rename may not
survive a power cut.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunery.registry.errors import disk_code, is_full

__all__ = ["keep_room", "no_room", "room_or_not", "sync", "write_durably"]

_PROBE = 1 << 17
RESERVE = 1 << 18
"""Bytes: what SQLite needs for a small transaction, several times."""


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file with `data` atomically, and wait until it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        sync(temporary)
        temporary.rename(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def no_room(folder: Path) -> bool:
    """Whether the disk of `folder` is full, by trying to write: quotas and limits show nowhere else."""
    probe = folder / f".room-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(bytes(_PROBE))
    except OSError as error:
        return disk_code(error) == "disk_full"
    finally:
        probe.unlink(missing_ok=True)
    return False


def keep_room(path: Path, size: int = RESERVE) -> None:
    """Reserve `size` bytes of a disk with a file, unless it exists already or the disk is full."""
    if not path.exists():
        with room_or_not():
            write_durably(path, os.urandom(size))


@contextmanager
def room_or_not() -> Iterator[None]:
    """Ignore that the disk is too full for what the block writes."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
