"""Compute a version's digest: its identity, whatever it is called and wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from tunery.registry.peft.config import normalised
from tunery.registry.peft.layout import CONFIG
from tunery.registry.records import FileEntry
from tunery.registry.versions.reports import without_report

__all__ = ["version_digest"]


def version_digest(files: Iterable[FileEntry], config: Mapping[str, Any], *, base_digest: str) -> str:
    """Hex sha256 over the base's digest, the normalised adapter configuration, and the other files sorted by path.

    The report is left out: the same weights are the same version, however they were measured.
    """
    digest = hashlib.sha256(b"tunery version 1\n" + base_digest.encode() + b"\n" + normalised(config) + b"\n")
    for entry in sorted(without_report(files)):
        if entry.path != CONFIG:
            digest.update(f"{entry.path}\0{entry.size}\0{entry.sha256}\n".encode())
    return digest.hexdigest()
