"""Hold staging folders in use, so that a collection can tell them from what a dead process left behind.

A holder keeps a shared `flock` on the folder itself, which the system releases when the process ends, however that
happens. The `filelock` library has no shared locks, and locks a file beside what is held, which would itself have to be
collected.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["exclusive", "shared", "staged"]


@contextmanager
def staged(staging: Path, what: str) -> Iterator[Path]:
    """A new folder `what-…` under `staging`, held while the block runs and removed afterwards."""
    folder, descriptor = _make(staging, what)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold an existing file or folder together with others; waits while it is held exclusively."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold an existing file or folder exclusively; yields False when it is held already and `wait` is not set.

    On a file system without locks everything counts as free, and only its age protects it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        # It vanished, so its holder is done with it.
        yield True
        return
    try:
        yield _lock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _make(staging: Path, what: str) -> tuple[Path, int]:
    """A new folder and the descriptor that holds it; tried again when a collection removed it before it was locked."""
    while True:
        folder = staging / f"{what}-{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY)
            _lock(descriptor, fcntl.LOCK_SH)
            if folder.is_dir():
                return folder, descriptor
            os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
