"""Owns identities: sha256 of bytes, of files, and of a version; refuses names, times and paths of the machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from tunery.registry.records import FileEntry
from tunery.registry.versions.reports import left_out

__all__ = ["THREADS", "file_digest", "normalised", "tree_digest", "version_digest"]

_CHUNK = 1 << 20
_PIECE = 1 << 23
THREADS = 4
"""Files or pieces of one that are digested at once; hashing leaves the interpreter to others."""

# What is in adapter_config.json that says where and when, not what; the base has its own place in the digest.
_INCIDENTAL = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "tunery_base_digest"}
)


def file_digest(path: Path) -> tuple[str, int]:
    """Hex sha256 and size in bytes of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def tree_digest(path: Path) -> str:
    """Hex sha256 over the sha256 of each piece of a large file, several pieces at a time."""
    with path.open("rb") as file, ThreadPoolExecutor(THREADS) as threads:
        size = os.fstat(file.fileno()).st_size

        def piece(at: int) -> bytes:
            return hashlib.sha256(os.pread(file.fileno(), _PIECE, at)).digest()

        return hashlib.sha256(b"".join(threads.map(piece, range(0, size, _PIECE)))).hexdigest()


def normalised(config: Mapping[str, Any]) -> bytes:
    """The adapter configuration as bytes that are equal when it means the same."""
    kept = {name: value for name, value in config.items() if name not in _INCIDENTAL and value is not None}
    for name in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(kept.get(name), list):
            kept[name] = sorted(kept[name])
    return msgspec.json.encode(kept, order="deterministic")


def version_digest(files: Iterable[FileEntry], config: Mapping[str, Any], *, base_digest: str) -> str:
    """Hex sha256 over the base, the normalised configuration and the sorted files (the configuration file and the report aside)."""
    digest = hashlib.sha256(b"tunery version 1\n" + base_digest.encode() + b"\n" + normalised(config) + b"\n")
    for entry in sorted(left_out(files)):
        if entry.path != "adapter_config.json":
            digest.update(f"{entry.path}\0{entry.size}\0{entry.sha256}\n".encode())
    return digest.hexdigest()
