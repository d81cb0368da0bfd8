"""Tune glibc's allocator: a process that computes keeps large buffers, one that serves returns them. Other allocators
are left alone.

By default every large temporary of a training or decoding step is mapped, zeroed page by page and unmapped again, which
costs more than the arithmetic. Call these before torch allocates; calling them again changes nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

__all__ = ["bound_allocator", "trim_memory", "resident_bytes", "tune_allocator"]

# Parameter numbers of mallopt(3), from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8
_KEEP = 2**31 - 1
_PAD = 64 * 2**20
_LARGE = 256 * 2**10


def tune_allocator() -> bool:
    """Keep freed memory in the process and serve large blocks from the heap. True where glibc took the settings."""
    accepted = _set((_TRIM_THRESHOLD, _KEEP), (_TOP_PAD, _PAD), (_MMAP_THRESHOLD, _KEEP))
    if accepted and not accepted[-1]:
        # Some versions cap the threshold; without mappings at all every block comes from the heap.
        accepted[-1:] = _set((_MMAP_MAX, 0))
    return bool(accepted) and all(accepted)


def bound_allocator() -> bool:
    """Return freed memory to the kernel, for a process that needs much of it now and then. True where glibc took the
    settings.

    Uses few arenas, and a mapping for each large block. Setting the thresholds also keeps glibc from raising them.
    """
    accepted = _set((_ARENA_MAX, 2), (_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _LARGE))
    return bool(accepted) and all(accepted)


def _set(*settings: tuple[int, int]) -> list[bool]:
    """Whether glibc took each setting; [] where there is another allocator."""
    if platform.libc_ver()[0] != "glibc":
        return []
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return []
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return [mallopt(name, value) == 1 for name, value in settings]


def trim_memory() -> None:
    """Return unused memory that glibc keeps to the kernel, after something that needed much of it once."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Resident memory of this process in bytes; 0 where the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError, ValueError):
        return 0
