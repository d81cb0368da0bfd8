"""Examine what lies beside the database: blobs, staging folders, bases."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy import StaticPool, create_engine

from tunery.gateway.doctor.finding import Examined, Finding, fail, ok, warn
from tunery.gateway.doctor.reading import open_unchanged
from tunery.registry.base_files import base_digest
from tunery.registry.errors import some_of
from tunery.registry.home import Home
from tunery.registry.storage import leases
from tunery.registry.storage.digest import file_digest
from tunery.registry.storage.schema import HEAD
from tunery.registry.versions.upkeep import needed_blobs

__all__ = ["check_bases", "check_blobs", "check_staging"]

_LOOKED_AT = 5_000
"""Blobs that are looked for without `deep`."""
_SECONDS = 1.0
_OLD = 3600.0
_AGAIN = "tunery adapters verify says of which versions; restore a backup, or publish or import them again"


def check_blobs(examined: Examined) -> Iterator[Finding]:
    """Whether the blobs that the database names are there, and some or all of them whole."""
    if not examined.home.database.exists():
        return
    try:
        needed = sorted(_needed(examined.home))
    except sqlite3.Error as error:
        yield warn("blobs", f"which there should be cannot be read ({error})", "see the database above")
        return
    looked = needed if examined.deep else needed[:: max(1, -(-len(needed) // _LOOKED_AT))]
    paths = {sha256: examined.home.blobs / sha256[:2] / sha256 for sha256 in looked}
    missing = [sha256[:12] for sha256, path in paths.items() if not path.is_file()]
    if missing:
        yield fail("blobs", f"{len(missing)} of {len(looked)} are missing: {some_of(missing, 3)}", _AGAIN)
        return
    damaged, read = _damaged(paths, deep=examined.deep)
    if damaged:
        yield fail("blobs", f"{len(damaged)} of {read} do not match their digests: {some_of(damaged, 3)}", _AGAIN)
        return
    all_read = f"all {read} match their digests" if read == len(needed) else f"{read} of {len(needed)} read: they match"
    yield ok("blobs", all_read + ("" if examined.deep or read == len(needed) else "; --deep reads all"))


def _needed(home: Home) -> set[str]:
    with open_unchanged(home.database) as raw:
        row = raw.execute("SELECT version_num FROM alembic_version").fetchone()
        if row is None or row[0] != HEAD:
            return {sha256 for (sha256,) in raw.execute("SELECT DISTINCT sha256 FROM files")}
        engine = create_engine("sqlite://", creator=lambda: raw, poolclass=StaticPool)
        with engine.connect() as connection:
            return needed_blobs(connection)


def _damaged(paths: dict[str, Path], *, deep: bool) -> tuple[list[str], int]:
    """The blobs that do not match, of those that were read, and how many those are."""
    damaged, read, end = [], 0, time.monotonic() + _SECONDS
    for sha256, path in paths.items():
        if not deep and time.monotonic() > end:
            break
        read += 1
        try:
            sound = file_digest(path)[0] == sha256
        except OSError:
            sound = False
        if not sound:
            damaged.append(sha256[:12])
    return damaged, read


def check_staging(examined: Examined) -> Iterator[Finding]:
    """What processes that died left behind."""
    left = [path for path in _entries(examined.home.staging) if _is_left(path, examined.now)]
    if left:
        yield warn(
            "staging", f"{len(left)} folders are left of processes that ended", "tunery adapters gc removes them"
        )
    else:
        yield ok("staging", "nothing is left over")
    root = _entries(examined.home.root)
    if restoring := [path.name for path in root if path.name.startswith("restoring-")]:
        yield warn("restore", f"{restoring[0]} is of a restore that runs or was killed", "restore again, or remove it")
    if replaced := [path.name for path in root if path.name.startswith("replaced-")]:
        yield warn("restore", f"{some_of(replaced, 3)}: what a restore moved aside", "remove it when it is not wanted")


def _entries(folder: Path) -> Sequence[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return ()


def _is_left(path: Path, now: float) -> bool:
    try:
        if now - path.stat().st_mtime < _OLD:
            return False
    except OSError:
        return False
    with leases.exclusive(path, wait=False) as free:
        return free


def check_bases(examined: Examined) -> Iterator[Finding]:
    """Whether the files of each base are there, and with `deep` what they should be."""
    if not examined.home.database.exists():
        return
    try:
        with open_unchanged(examined.home.database) as connection:
            bases = connection.execute("SELECT name, digest, path FROM bases ORDER BY name").fetchall()
    except sqlite3.Error:
        return
    problems = [(name, problem) for name, digest, path in bases if (problem := _problem(examined, digest, path))]
    for name, problem in problems:
        yield fail("bases", f"{name} {problem}", f"tunery bases add {name}")
    if not bases:
        yield ok("bases", "none yet: the first start adds the one that it serves")
    elif not problems:
        names = some_of([name for name, _, _ in bases], 3)
        yield ok("bases", f"{names}: {'all bytes match' if examined.deep else 'there; --deep reads them'}")


def _problem(examined: Examined, digest: str, path: str) -> str:
    own = examined.home.bases / digest
    folder = own if own.is_dir() else examined.home.root / path
    if not (folder / "config.json").is_file() or next(folder.glob("*.safetensors"), None) is None:
        return f"has no files in {folder}"
    if examined.deep and own.is_dir() and base_digest(own) != digest:
        return "does not match its digest"
    return ""
