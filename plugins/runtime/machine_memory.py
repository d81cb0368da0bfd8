"""The machine's memory, within the control group of this process. All sizes are in bytes; needs no torch."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["free_memory", "total_memory", "usable_memory"]

SPARE = 0.9
"""The share of free memory that a job may use."""
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_memory() -> int:
    """What may still be allocated."""
    free = [_meminfo("MemAvailable")]
    for limit, used in _LIMITS:
        most, now = _number(Path(limit)), _number(Path(used))
        if most is not None and now is not None:
            free.append(most - now)
    return max(min(free), 0)


def total_memory() -> int:
    """What could be allocated if nothing else were."""
    limits = [_number(Path(limit)) for limit, _ in _LIMITS]
    return min(_meminfo("MemTotal"), *(limit for limit in limits if limit is not None), sys.maxsize)


def usable_memory() -> int:
    """What a job may still use."""
    return int(SPARE * free_memory())


def _meminfo(name: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return sys.maxsize
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), sys.maxsize)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
