"""Measure and release memory: the device's on a GPU, the process's elsewhere. All sizes are in bytes."""

from __future__ import annotations

import contextlib
import errno
import gc
import resource
import sys
from pathlib import Path

import torch

from tunery.plugins.runtime.allocator import resident_bytes, trim_memory
from tunery.plugins.runtime.machine_memory import free_memory

__all__ = [
    "available_memory",
    "current_memory",
    "is_out_of_memory",
    "peak_memory",
    "release_memory",
    "reset_peak_memory",
]

_SAYS = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")
"""What torch's RuntimeErrors say: of the machine's memory on Linux and on Windows, of a device's, and in C++."""


def available_memory(device: torch.device) -> int:
    """Bytes that this process may still allocate: on the GPU, or on the machine within its control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


def current_memory(device: torch.device) -> int:
    """Bytes in use now."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return resident_bytes() or peak_memory(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes in use so far; on a GPU and on Linux, since `reset_peak_memory`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of the peak, where the system can (proc(5), clear_refs)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def release_memory() -> None:
    """Collect garbage and return unused memory to the system."""
    gc.collect()
    trim_memory()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that memory could not be allocated."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _SAYS):
            return True
        error = error.__cause__
    return False
