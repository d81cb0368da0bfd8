"""A small file system of its own, to be filled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

__all__ = ["fill_disk", "mounted_disk"]


@contextmanager
def mounted_disk(place: Path, size: str) -> Iterator[Path]:
    """Mount a file system of `size`, such as 4m, at a new folder; skip the test where that cannot be done."""
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill_disk(place: Path) -> Path:
    """Fill the disk of a folder to the last byte; returns the file that does."""
    filler = place / "filler"
    descriptor = os.open(filler, os.O_CREAT | os.O_WRONLY)
    with suppress(OSError):
        while os.write(descriptor, bytes(4096)):
            """Until there is no room."""
    os.close(descriptor)
    return filler
