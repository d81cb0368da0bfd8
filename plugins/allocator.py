"""Owns telling glibc to keep large buffers instead of handing each back to the kernel; refuses to touch other allocators.

Every large temporary of a training or decoding step would otherwise be mapped, zeroed page by page and unmapped again, which
costs more than the arithmetic. Call it before torch allocates; calling it again changes nothing.
"""

from __future__ import annotations

import ctypes
import platform

__all__ = ["give_back", "tune_allocator"]

# Parameter numbers of mallopt(3), from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_KEEP = 2**31 - 1
_PAD = 64 * 2**20


def tune_allocator() -> bool:
    """Keep freed memory in the process and serve large blocks from the heap; True when glibc took the settings."""
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    settings = ((_TRIM_THRESHOLD, _KEEP), (_TOP_PAD, _PAD), (_MMAP_THRESHOLD, _KEEP))
    taken = [mallopt(name, value) == 1 for name, value in settings]
    if not taken[-1]:
        # Some versions cap the threshold; without mappings at all every block comes from the heap.
        taken[-1] = mallopt(_MMAP_MAX, 0) == 1
    return all(taken)


def give_back() -> None:
    """Hand what glibc keeps and nobody uses back to the kernel: after something that needed much memory once."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
