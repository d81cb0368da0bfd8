"""Owns that one process at a time works on a job; the lock ends with its holder, however that ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunery.registry.errors import Conflict

__all__ = ["exclusive", "is_running"]

FILE = "lock"


@contextmanager
def exclusive(folder: Path, job_id: str) -> Iterator[None]:
    """Hold the job whose folder this is; raise Conflict when another process does."""
    with (folder / FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"{job_id} runs in another process; wait for it, or stop it with tunery jobs cancel {job_id}",
                code="job_running",
            ) from error
        yield


def is_running(folder: Path) -> bool:
    """Whether a process holds the job now."""
    try:
        with (folder / FILE).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
