"""Staging folders that a running process holds, so that a collection can tell them from what a dead one left behind.

A holder keeps a shared `flock` on its folder. The system releases it when the process ends, however that happens.
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
    """Hold an existing file or folder together with others; wait while somebody has it exclusively."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold an existing file or folder alone: False when somebody else holds it and `wait` is not set.

    Where the file system knows no locks, everything counts as free, and its age must decide.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        # It vanished, so whoever held it is done with it.
        yield True
        return
    try:
        yield _lock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _make(staging: Path, what: str) -> tuple[Path, int]:
    """A folder and the descriptor that holds it; made again when a collection was faster than the lock."""
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
