"""Compute the sha256 of files, by which blobs are named. `versions.digest` says what a version's digest covers."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["THREADS", "file_digest", "tree_digest"]

_CHUNK = 1 << 20
_PIECE = 1 << 23
THREADS = 4
"""Files, or pieces of one file, that are digested at once; hashing releases the GIL."""


def file_digest(path: Path) -> tuple[str, int]:
    """Hex sha256 and size in bytes of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def tree_digest(path: Path) -> str:
    """Hex sha256 over the sha256 of each 8 MiB piece of a large file; several pieces are read at once."""
    with path.open("rb") as file, ThreadPoolExecutor(THREADS) as threads:
        size = os.fstat(file.fileno()).st_size

        def piece(offset: int) -> bytes:
            return hashlib.sha256(os.pread(file.fileno(), _PIECE, offset)).digest()

        return hashlib.sha256(b"".join(threads.map(piece, range(0, size, _PIECE)))).hexdigest()
