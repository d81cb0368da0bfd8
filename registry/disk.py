"""Owns two things about disks: that what was written is on them, and what their errors are called."""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["disk_code", "sync"]


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_code(error: OSError) -> str:
    """The error code for what a disk said: `disk_full` or `storage_failed`."""
    return "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "storage_failed"
