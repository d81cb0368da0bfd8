"""Owns identities: sha256 of bytes, of files, and of a version; refuses names, times and paths of the machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tunery.registry.records import FileEntry
from tunery.registry.reports import left_out

__all__ = ["file_digest", "normalised", "version_digest"]

_CHUNK = 1 << 20

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
