"""Owns the files of a version that tell how it did, under `report/`: their names and sizes. Refuses a trainer's own, and any others.

They are no part of the version's digest: the same weights are the same version, whatever was said of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tunery.registry.errors import ArtifactRefused
from tunery.registry.records import FileEntry, Version

__all__ = ["LIMITS", "PUBLIC", "check_names", "check_report", "claimed", "is_report", "left_out", "report_files"]

PREFIX = "report/"
MIB = 2**20

LIMITS = {
    f"{PREFIX}report.json": 4 * MIB,
    f"{PREFIX}report.md": 1 * MIB,
    f"{PREFIX}loss.png": 4 * MIB,
    f"{PREFIX}rows.jsonl": 16 * MIB,
    f"{PREFIX}samples.json": 1 * MIB,
    f"{PREFIX}samples.md": 1 * MIB,
}
"""The largest size in bytes of each file of a report."""

PUBLIC = (f"{PREFIX}report.json", f"{PREFIX}report.md", f"{PREFIX}loss.png")
"""What holds no text of any row, and so may go where others can read it."""


def is_report(path: str) -> bool:
    """Whether a version's file belongs to its report."""
    return f"{path}/".startswith(PREFIX)


def left_out(files: Iterable[FileEntry]) -> list[FileEntry]:
    """The files that are the version itself."""
    return [entry for entry in files if not is_report(entry.path)]


def check_names(names: Iterable[str]) -> None:
    """Raise ArtifactRefused where a trainer wrote into the folder that is kept for the report."""
    taken = [name for name in names if is_report(name)]
    if taken:
        raise ArtifactRefused(
            f"{taken[0]} is where the report of a version goes; the trainer must write its files elsewhere",
            code="artifact_reserved",
        )


def report_files(folder: Path | None) -> dict[str, Path]:
    """The files of a report by their names in a version; raise ArtifactRefused for any that `check_report` finds fault with."""
    found = {} if folder is None else {PREFIX + path.name: path for path in sorted(folder.iterdir())}
    for name, path in found.items():
        problem = check_report(name, path)
        if problem is not None:
            raise ArtifactRefused(f"{name} {problem}", code="artifact_reserved")
    return found


def check_report(name: str, path: Path) -> str | None:
    """What is wrong with a file of a report, or None."""
    if name not in LIMITS:
        return f"is no file of a report; those are {', '.join(LIMITS)}"
    if not path.is_file() or path.is_symlink():
        return "is no plain file"
    if path.stat().st_size > LIMITS[name]:
        return f"has {path.stat().st_size} bytes; a report's may have {LIMITS[name]}"
    return _content_problem(name, path.read_bytes())


def _content_problem(name: str, data: bytes) -> str | None:
    """What is not what the name says."""
    if name.endswith(".png"):
        return None if data.startswith(b"\x89PNG\r\n\x1a\n") else "is no PNG"
    try:
        text = data.decode()
        if name.endswith(".json"):
            json.loads(text)
    except (ValueError, RecursionError):
        return "cannot be read as the text it should be"
    return None


def claimed(version: Version) -> bool:
    """Whether the report was not written here but came with the version, from whoever published it."""
    return "origin" in version.manifest
