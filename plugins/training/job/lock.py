"""The lock on a job's folder: one process at a time works on a job, and the lock ends with the process that holds it.

This is `flock` and not the package `filelock`, because `is_running` takes a shared lock: two processes that look at a
job at the same time must not take each other for the one that runs it, and filelock's locks are exclusive.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from tunery.plugins.training.folder import JobFolder
from tunery.registry.errors import Conflict

__all__ = ["hold_job", "is_running"]


@contextmanager
def hold_job(folder: JobFolder, job_id: str) -> Iterator[None]:
    """Hold the job while the block runs; raise Conflict when another process holds it."""
    with folder.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"{job_id} runs in another process; wait for it, or stop it with tunery jobs cancel {job_id}",
                code="job_running",
            ) from error
        yield


def is_running(folder: JobFolder) -> bool:
    """Whether a process holds the job now."""
    try:
        with folder.lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
