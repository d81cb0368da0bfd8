"""Say what a repository that Tunery published on the Hub holds, and where.

    README.md     the model card
    tunery.json   which version it is, and its files: the identity file
    adapter_config.json, adapter_model.safetensors, report/…

A full fine-tune has its exact model, ready for transformers, under `model/`, and its delta under `adapter/`:
transformers takes a repository with an adapter's configuration at its root for that adapter, whatever subfolder it is
asked for.
"""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["ADAPTER", "CARD", "IDENTITY", "MODEL", "identified_base", "identified_files"]

CARD, IDENTITY = "README.md", "tunery.json"
MODEL, ADAPTER = "model/", "adapter/"
MAX_IDENTITY = 16 * 2**20
"""Bytes of the largest identity file that is read."""


def identified_files(identity: Path) -> set[str]:
    """The paths that an identity file lists; none where it is somebody else's file of that name."""
    try:
        return {str(entry["path"]) for entry in json.loads(identity.read_text(encoding="utf-8"))["files"]}
    except (ValueError, LookupError, TypeError, RecursionError):
        return set()


def identified_base(identity: Path) -> str | None:
    """The base's digest in an identity file; None where there is no such file, or it is somebody else's."""
    try:
        if identity.stat().st_size > MAX_IDENTITY:
            return None
        digest = json.loads(identity.read_bytes())["base_digest"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return digest if isinstance(digest, str) else None
