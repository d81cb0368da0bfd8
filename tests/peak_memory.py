"""The most memory a process has held, for code that tests run in a process of its own."""

from __future__ import annotations

__all__ = ["PEAK"]

PEAK = """
from pathlib import Path

def peak() -> int:
    # Kilobytes. Not ru_maxrss, which a process inherits from whoever started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

"""
