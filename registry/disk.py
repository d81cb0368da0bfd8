"""Owns two things about disks: that what was written is on them, and what their errors are called."""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["disk_code", "is_full", "sync"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_code(error: OSError) -> str:
    """The error code for what a disk said: `disk_full` or `storage_failed`."""
    return "disk_full" if error.errno in _FULL else "storage_failed"


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that the disk would take no more.

    Libraries pass on what the disk said as their own error, with its text or in the chain of errors alone.
    """
    while error is not None:
        if (isinstance(error, OSError) and error.errno in _FULL) or any(
            os.strerror(code) in str(error) for code in _FULL
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
