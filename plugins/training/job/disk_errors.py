"""Owns telling a full disk for what it is, whoever ran into it: torch, safetensors or the run itself. Other errors pass as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tunery.registry.errors import StorageFailed, TuneryError, is_full

__all__ = ["full_disk_told"]


@contextmanager
def full_disk_told(job: str) -> Iterator[None]:
    """Turn what a full disk makes anything raise into StorageFailed with the code `disk_full`, and say how to go on with `job`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, TuneryError) or not is_full(error):
            raise
        raise StorageFailed(
            f"the disk is full: {job} could not go on; free some space and go on with tunery train --resume {job}",
            code="disk_full",
        ) from error
