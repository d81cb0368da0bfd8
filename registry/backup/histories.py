"""Hold the files of jobs and batches as they are now, by links to them, while those jobs and batches go on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["linked_files"]

_HISTORY = ("request.json", "manifest.json", "metrics.jsonl", "report")
"""What is kept of every job."""
_MOMENTARY = ("lock", "control", "output", "epoch")
"""What is of no use once the process that runs a job is gone."""
_TRIES = 3


def linked_files(folder: Path, lease: Path, *, checkpoints: bool) -> Iterator[tuple[str, Path]]:
    """The files of each job or batch by their paths below the home, held by links under the lease."""
    for one in sorted(folder.iterdir()) if folder.is_dir() else ():
        if one.is_dir() and not one.is_symlink():
            place = lease / folder.name / one.name
            for _ in range(_TRIES):
                shutil.rmtree(place, ignore_errors=True)
                before = _listing(one, checkpoints=checkpoints)
                linked = list(_link(one, place, before))
                if before == _listing(one, checkpoints=checkpoints):
                    break
            yield from ((f"{folder.name}/{one.name}/{name}", path) for name, path in linked)


def _listing(folder: Path, *, checkpoints: bool) -> dict[str, int]:
    """The inode of each file by its path below `folder`: a checkpoint that is replaced meanwhile has others."""
    found = {}
    for parent, folders, names in os.walk(folder):
        relative = Path(parent).relative_to(folder)
        if relative == Path():
            wanted = [name for name in (*folders, *names) if _is_kept(name, checkpoints=checkpoints)]
            folders[:], names = [name for name in folders if name in wanted], [name for name in names if name in wanted]
        for name in names:
            with suppress(OSError):
                path = Path(parent, name)
                if path.is_file() and not path.is_symlink() and not name.endswith(".new"):
                    found[(relative / name).as_posix()] = path.stat().st_ino
    return found


def _is_kept(name: str, *, checkpoints: bool) -> bool:
    return name not in _MOMENTARY if checkpoints else name in _HISTORY


def _link(folder: Path, place: Path, names: Mapping[str, int]) -> Iterator[tuple[str, Path]]:
    for name in sorted(names):
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(folder / name)
        except FileNotFoundError:
            continue
        except OSError:
            with suppress(FileNotFoundError):
                shutil.copyfile(folder / name, target)
        if target.exists():
            yield name, target
