"""Owns three things about disks: that what was written is on them, whether they are full, and what their errors are called."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["disk_code", "is_full", "keep_room", "no_room", "room_or_not", "sync", "write_durably"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROBE = 1 << 17
RESERVE = 1 << 18
"""Bytes: what SQLite needs for a small transaction, several times."""


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file with `data`, all or nothing, and wait until that is on the disk."""
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
    """Whether the disk that holds `folder` takes nothing more; tried, since quotas and limits show nowhere else."""
    probe = folder / f".room-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(bytes(_PROBE))
    except OSError as error:
        return error.errno in _FULL
    finally:
        probe.unlink(missing_ok=True)
    return False


def keep_room(path: Path, size: int = RESERVE) -> None:
    """Take up room on a disk with a file, where that is not done yet and there is any."""
    if not path.exists():
        with room_or_not():
            write_durably(path, os.urandom(size))


@contextmanager
def room_or_not() -> Iterator[None]:
    """Go on without what the block writes where the disk is full."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise


def disk_code(error: OSError) -> str:
    """The error code for what a disk said: `disk_full` or `storage_failed`."""
    return "disk_full" if error.errno in _FULL else "storage_failed"


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that the disk would take no more.

    Libraries pass on what the disk said as their own error, with its text or in the chain of errors alone.
    """
    while error is not None:
        said = (os.strerror(code) in str(error) for code in _FULL)
        if (
            (isinstance(error, OSError) and error.errno in _FULL)
            or getattr(error, "code", None) == "disk_full"
            or any(said)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
