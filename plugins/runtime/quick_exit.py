"""Let a process end without a last garbage collection, which takes over a second once transformers and peft are imported."""

from __future__ import annotations

import atexit
import gc

__all__ = ["exit_quickly"]


def exit_quickly() -> None:
    """Leave what is in memory at the end of this process to the operating system."""
    atexit.register(gc.freeze)
