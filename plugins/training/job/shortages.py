"""One error for a full disk and one for a lack of memory, whichever library ran into it: torch, NumPy, safetensors or
Python itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tunery.plugins.runtime.memory import is_out_of_memory
from tunery.plugins.training.job.preflight import NotEnoughMemory
from tunery.registry.errors import StorageFailed, TuneryError, is_full

__all__ = ["shortage_explained"]

_SIZE = re.compile(r"[Tt]ried to allocate ([0-9]+) bytes")


@contextmanager
def shortage_explained(job: str) -> Iterator[None]:
    """Turn whatever a full disk makes the block raise into StorageFailed `disk_full`, which says how to resume `job`, and
    a failed allocation into NotEnoughMemory (out_of_memory).

    Other errors pass unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, TuneryError):
            raise
        if is_full(error):
            raise StorageFailed(
                f"the disk is full: {job} could not go on; free some space and go on with tunery train --resume {job}",
                code="disk_full",
            ) from error
        if not is_out_of_memory(error):
            raise
        size = _SIZE.search(str(error))
        what = f"{int(size[1]) / 1e9:.2f} GB at once could not be had" if size else "an allocation failed"
        raise NotEnoughMemory(
            f"{job} ran out of memory: {what}; lower micro_batch_size, max_length or r, or choose qlora", None
        ) from error
