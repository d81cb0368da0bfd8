"""Compare the files of a base with its digest.

A base's digest covers the digests of its files, so a recorded list of those can be verified by itself. It is kept with
each file's size and times as they were when it was read: at a start only files that look different are read again, and
small ones always. Damage below the file system, which changes neither, is found where files are read whole: by packing
a base, and by a verification.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from tunery.registry.errors import StorageFailed
from tunery.registry.home import Home
from tunery.registry.records import Base
from tunery.registry.storage.digest import THREADS, file_digest
from tunery.registry.storage.disk import room_or_not, write_durably

__all__ = ["base_digest", "changed_files", "damaged", "require_sound"]

SMALL = 4 * 2**20
"""Bytes up to which a file is read at every start."""

# Fields in which transformers notes where and how a configuration was saved.
_INCIDENTAL = frozenset(
    {"_model_name_or_path", "_name_or_path", "is_local", "local_files_only", "name_or_path", "transformers_version"}
)


class _Stamp(msgspec.Struct, frozen=True):
    """A file's content digest, with its size in bytes and its times in ns when that was computed."""

    content: str
    size: int
    modified: int
    changed: int


def base_digest(folder: Path) -> str:
    """Hex sha256 over weights, tokenizer, chat template and configuration; not over where or when they were saved."""
    return _digest(_contents([path for path in folder.iterdir() if path.is_file()]))


def changed_files(folder: Path, digest: str, record: Path, *, whole: bool = False) -> list[str]:
    """Names of the files in `folder` that differ from the base with that digest; empty when it is sound.

    `record` is where the list of stamps is kept; without one that fits, the folder's own name stands for what is wrong.
    `whole` reads every file, whatever its stamp.
    """
    recorded = _recorded(record, digest)
    paths = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    same = {
        name: stamp.content
        for name, stamp in recorded.items()
        if not whole and name in paths and stamp.size > SMALL and _stamp(paths[name], stamp.content) == stamp
    }
    read = _contents([path for name, path in paths.items() if name not in same])
    if _digest(same | read) == digest:
        stamps = {name: _stamp(paths[name], content) for name, content in (same | read).items()}
        if stamps != recorded:
            with room_or_not():
                write_durably(record, msgspec.json.encode(stamps))
        return []
    wrong = sorted(
        name
        for name in recorded | paths
        if name not in same and (name not in recorded or recorded[name].content != read.get(name))
    )
    _distrust(recorded, wrong, record)
    return wrong or [folder.name]


def require_sound(base: Base, home: Home) -> None:
    """Raise StorageFailed (base_damaged) where the files of a base in the home do not match its digest."""
    folder = home.bases / base.digest
    wrong = changed_files(folder, base.digest, home.base_stamps(base.digest)) if folder.is_dir() else []
    if wrong:
        raise damaged(base.name, wrong)


def damaged(name: str, wrong: list[str]) -> StorageFailed:
    """The error for a base whose files do not match its digest."""
    return StorageFailed(
        f"the base {name} is damaged ({', '.join(wrong)}): add it again with `tunery bases add {name}`",
        code="base_damaged",
    )


def _distrust(recorded: Mapping[str, _Stamp], wrong: list[str], record: Path) -> None:
    """Spoil the stamps of wrong files, so that they are read again next time even if they look the same."""
    if recorded:
        marked = {name: _Stamp(stamp.content, 0, 0, 0) if name in wrong else stamp for name, stamp in recorded.items()}
        with room_or_not():
            write_durably(record, msgspec.json.encode(marked))


def _recorded(record: Path, digest: str) -> dict[str, _Stamp]:
    """The recorded stamps, if they are of this base."""
    try:
        stamps = msgspec.json.decode(record.read_bytes(), type=dict[str, _Stamp])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return stamps if _digest({name: stamp.content for name, stamp in stamps.items()}) == digest else {}


def _digest(contents: Mapping[str, str]) -> str:
    digest = hashlib.sha256(b"tunery base 1\n")
    for name in sorted(contents):
        digest.update(f"{name}\0{contents[name]}\n".encode())
    return digest.hexdigest()


def _contents(paths: list[Path]) -> dict[str, str]:
    return {path.name: content for path, content in _read(paths).items()}


def _read(paths: list[Path]) -> dict[Path, str]:
    """The content digests of files."""
    with ThreadPoolExecutor(THREADS) as threads:
        return dict(zip(paths, threads.map(_content, paths), strict=True))


def _content(path: Path) -> str:
    """Hex sha256 of a file, or of what a configuration means; empty where it cannot be read."""
    try:
        if not path.name.endswith("config.json"):
            return file_digest(path)[0]
        settings = {name: value for name, value in json.loads(path.read_bytes()).items() if name not in _INCIDENTAL}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    except (OSError, ValueError, AttributeError):
        return ""


def _stamp(path: Path, content: str) -> _Stamp:
    stat = path.stat()
    return _Stamp(content, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
