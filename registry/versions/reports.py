"""Decide which files may be a version's report (under `report/`), and how large each may be.

The report is not part of the version's digest: the same weights are the same version, however they were measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tunery.registry.errors import ArtifactRefused
from tunery.registry.records import FileEntry, Version

__all__ = [
    "LIMITS",
    "PUBLIC",
    "check_names",
    "is_imported",
    "is_report",
    "report_files",
    "report_problem",
    "without_report",
]

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
"""The files of a report, and the largest size of each in bytes."""

PUBLIC = (f"{PREFIX}report.json", f"{PREFIX}report.md", f"{PREFIX}loss.png")
"""Files that hold no text of any row, and so may be published."""


def is_report(path: str) -> bool:
    """Whether a version's file belongs to its report."""
    return f"{path}/".startswith(PREFIX)


def without_report(files: Iterable[FileEntry]) -> list[FileEntry]:
    """The files that are the version itself."""
    return [entry for entry in files if not is_report(entry.path)]


def check_names(names: Iterable[str]) -> None:
    """Raise ArtifactRefused (artifact_reserved) where a trainer wrote into the folder of the report."""
    reserved = [name for name in names if is_report(name)]
    if reserved:
        raise ArtifactRefused(
            f"{reserved[0]} is reserved for a version's report; the trainer must write its files elsewhere",
            code="artifact_reserved",
        )


def report_files(folder: Path | None) -> dict[str, Path]:
    """A report's files by their names in a version; raise ArtifactRefused (artifact_reserved) for an unfit one."""
    files = {} if folder is None else {PREFIX + path.name: path for path in sorted(folder.iterdir())}
    for name, path in files.items():
        problem = report_problem(name, path)
        if problem is not None:
            raise ArtifactRefused(f"{name} {problem}", code="artifact_reserved")
    return files


def report_problem(name: str, path: Path) -> str | None:
    """What is wrong with a file of a report, or None."""
    if name not in LIMITS:
        return f"is not a file of a report; those are {', '.join(LIMITS)}"
    if not path.is_file() or path.is_symlink():
        return "is not a plain file"
    if path.stat().st_size > LIMITS[name]:
        return f"has {path.stat().st_size} bytes; a report's may have {LIMITS[name]}"
    return _content_problem(name, path.read_bytes())


def _content_problem(name: str, data: bytes) -> str | None:
    """Why the bytes are not of the kind that the name says, or None."""
    if name.endswith(".png"):
        return None if data.startswith(b"\x89PNG\r\n\x1a\n") else "is not a PNG"
    try:
        text = data.decode()
        if name.endswith(".json"):
            json.loads(text)
    except (ValueError, RecursionError):
        return "cannot be read: it is not valid UTF-8 text or JSON"
    return None


def is_imported(version: Version) -> bool:
    """Whether a version was imported, so that its report was written elsewhere and is not vouched for here."""
    return "origin" in version.manifest
