"""Set a process up for computing, before torch is imported: memory, threads, and the warnings of libraries."""

from __future__ import annotations

from tunery.plugins.runtime.allocator import tune_allocator
from tunery.plugins.runtime.logging import silence_libraries
from tunery.plugins.runtime.threads import apply_threads

__all__ = ["prepare_compute"]


def prepare_compute(threads: int = 0) -> None:
    """Keep large buffers in the process, silence harmless warnings, and compute with `threads` threads (0: all usable
    cores)."""
    tune_allocator()
    silence_libraries()
    apply_threads(threads)
