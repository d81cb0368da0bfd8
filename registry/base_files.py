"""Compare the files of a base with its digest.

A base's digest is over the digests of its files, so a list of those proves itself. The list is kept with how each file looked when it
was read (size and times): at a start, only files that look different are read again, and the small ones always. Damage below the file
system that leaves sizes and times alone is found where a file is read whole anyway: when a base is packed, and by a verification.
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

# What transformers notes in a configuration of where and how it was saved.
_INCIDENTAL = frozenset(
    {"_model_name_or_path", "_name_or_path", "is_local", "local_files_only", "name_or_path", "transformers_version"}
)


class _Seen(msgspec.Struct, frozen=True):
    """A file's content digest, and how it looked then."""

    content: str
    size: int
    modified: int
    changed: int


def base_digest(folder: Path) -> str:
    """Hex sha256 over weights, tokenizer, chat template and configuration; not over where or when they were saved."""
    return _digest(_contents([path for path in folder.iterdir() if path.is_file()]))


def changed_files(folder: Path, digest: str, record: Path, *, whole: bool = False) -> list[str]:
    """Names of the files that make the base in `folder` another than that of `digest`; none when it is sound.

    `whole` reads every file. Where `record` does not help, what is wrong is the folder: its name is given.
    """
    known = _recorded(record, digest)
    paths = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    same = {
        name: seen.content
        for name, seen in known.items()
        if not whole and name in paths and seen.size > SMALL and _look(paths[name], seen.content) == seen
    }
    read = _contents([path for name, path in paths.items() if name not in same])
    if _digest(same | read) == digest:
        looks = {name: _look(paths[name], content) for name, content in (same | read).items()}
        if looks != known:
            with room_or_not():
                write_durably(record, msgspec.json.encode(looks))
        return []
    wrong = sorted(
        name
        for name in known | paths
        if name not in same and (name not in known or known[name].content != read.get(name))
    )
    _distrust(known, wrong, record)
    return wrong or [folder.name]


def require_sound(base: Base, home: Home) -> None:
    """Raise StorageFailed (base_damaged) where a base in the home does not look like what its digest was taken of."""
    folder = home.bases / base.digest
    wrong = changed_files(folder, base.digest, home.verified(base.digest)) if folder.is_dir() else []
    if wrong:
        raise damaged(base.name, wrong)


def damaged(name: str, wrong: list[str]) -> StorageFailed:
    """The error for a base whose files are not what its digest was taken of."""
    return StorageFailed(
        f"the base {name} is damaged ({', '.join(wrong)}): take it again with `tunery bases add {name}`",
        code="base_damaged",
    )


def _distrust(known: Mapping[str, _Seen], wrong: list[str], record: Path) -> None:
    """Have what was found to be wrong read again next time, whatever it looks like."""
    if known:
        marked = {name: _Seen(seen.content, 0, 0, 0) if name in wrong else seen for name, seen in known.items()}
        with room_or_not():
            write_durably(record, msgspec.json.encode(marked))


def _recorded(record: Path, digest: str) -> dict[str, _Seen]:
    """What is on record, if it is a record of this base."""
    try:
        known = msgspec.json.decode(record.read_bytes(), type=dict[str, _Seen])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return known if _digest({name: seen.content for name, seen in known.items()}) == digest else {}


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
    """Hex sha256 of a file, or of a configuration's meaning; empty where it cannot be read."""
    try:
        if not path.name.endswith("config.json"):
            return file_digest(path)[0]
        settings = {name: value for name, value in json.loads(path.read_bytes()).items() if name not in _INCIDENTAL}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    except (OSError, ValueError, AttributeError):
        return ""


def _look(path: Path, content: str) -> _Seen:
    found = path.stat()
    return _Seen(content, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
