"""One error for a full disk, whichever library ran into it: torch, safetensors or Python itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tunery.registry.errors import StorageFailed, TuneryError, is_full

__all__ = ["disk_full_explained"]


@contextmanager
def disk_full_explained(job: str) -> Iterator[None]:
    """Turn whatever a full disk makes the block raise into StorageFailed `disk_full`, which says how to resume `job`.

    Other errors pass unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, TuneryError) or not is_full(error):
            raise
        raise StorageFailed(
            f"the disk is full: {job} could not go on; free some space and go on with tunery train --resume {job}",
            code="disk_full",
        ) from error
