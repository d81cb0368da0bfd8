"""Put restored files where they belong, so that a crash at any point leaves a home without a database, which nobody
takes for a registry, or a whole one.

Everything is staged in the home's own folder, which may be a mounted volume that nothing beside it could be renamed to.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Self

from tunery.registry.backup.files import name_file
from tunery.registry.backup.manifest import DATABASE
from tunery.registry.errors import Conflict, some_of
from tunery.registry.storage import leases
from tunery.registry.storage.disk import sync, write_durably

__all__ = ["Placement"]

_FOLDERS = ("bases", "jobs", "batches", "blobs")
_STAGING, _ASIDE = "restoring-", "replaced-"
_PLACING, _REPLACING = "placing", "replacing"
"""Files in the staging folder: from when on what is in the home was restored, and where the home before is moved to."""
_OPERATORS = frozenset({"config.toml", "lost+found"})
"""What may be in a home before it is restored."""
_USED_SECONDS = 1.0


class Placement:
    """A home that is being restored; `staging` is where its files are unpacked."""

    def __init__(self, root: Path, *, force: bool) -> None:
        self._root, self._force = root, force
        self.staging = root / f"{_STAGING}{uuid.uuid4().hex}"
        self._placed: list[Path] = []
        self._moved: list[tuple[Path, Path]] = []
        self._database: os.stat_result | None = None
        self._aside: str | None = None

    @classmethod
    @contextmanager
    def open(cls, root: Path, *, force: bool) -> Iterator[Self]:
        """Hold a home for the time of a restore; what is not in place at the end is removed again.

        Raise Conflict: restore_runs, home_not_empty unless `force` is set, or home_in_use.
        """
        new = not root.exists()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with leases.exclusive(root, wait=False) as free:
            if not free:
                raise Conflict(f"another restore to {root} runs; wait for it", code="restore_runs")
            aside = _clean(root)
            if not force:
                _require_empty(root)
            _require_unused(root)
            placement = cls(root, force=force)
            placement._aside = aside
            placement.staging.mkdir(mode=0o700)
            try:
                yield placement
            except BaseException:
                placement._undo()
                raise
            finally:
                shutil.rmtree(placement.staging, ignore_errors=True)
                if new:
                    with suppress(OSError):
                        root.rmdir()

    def place(self) -> Path | None:
        """Move everything into the home, the database last; returns the folder that the home before is in now."""
        _require_unused(self._root)
        if not self._force and _present(self._root):
            raise _used(self._root)
        aside = self._move_aside()
        write_durably(self.staging / _PLACING, b"")
        self._database = (self.staging / DATABASE).stat()
        try:
            for name in _FOLDERS:
                if (self.staging / name).exists():
                    (self.staging / name).rename(self._root / name)
                    self._placed.append(self._root / name)
            config = self._root / "config.toml"
            if (self.staging / config.name).exists() and not config.exists():
                name_file(self.staging / config.name, config)
                self._placed.append(config)
            sync(self._root)
            name_file(self.staging / DATABASE, self._root / DATABASE)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise _used(self._root) from error
            raise
        return aside

    def _move_aside(self) -> Path | None:
        present = _present(self._root)
        if not present:
            return None
        aside = self._root / (self._aside or _free_name(self._root))
        write_durably(self.staging / _REPLACING, aside.name.encode())
        aside.mkdir(mode=0o700, exist_ok=True)
        # The database first: without it nobody takes the rest for a registry.
        for path in sorted(present, key=lambda path: (not path.name.startswith(DATABASE), path.name)):
            path.rename(aside / path.name)
            self._moved.append((aside / path.name, path))
        sync(self._root)
        return aside

    def _undo(self) -> None:
        """Put the home back as it was, unless the database is in place: then everything is."""
        with suppress(OSError):
            if self._database is not None and os.path.samestat((self._root / DATABASE).stat(), self._database):
                return
        for path in self._placed:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for moved, path in reversed(self._moved):
            with suppress(OSError):
                moved.rename(path)
        if self._moved:
            with suppress(OSError):
                self._moved[0][0].parent.rmdir()


def _clean(root: Path) -> str | None:
    """Remove what a restore left that was killed; returns the folder into which it was moving the home before."""
    aside = None
    for left in root.glob(f"{_STAGING}*"):
        if not (root / DATABASE).exists():
            if (left / _PLACING).exists():
                for name in _FOLDERS:
                    shutil.rmtree(root / name, ignore_errors=True)
            elif (left / _REPLACING).exists():
                aside = (left / _REPLACING).read_text()
        shutil.rmtree(left)
    return aside if aside and (root / aside).is_dir() and aside.startswith(_ASIDE) else None


def _present(root: Path) -> list[Path]:
    """What is in the home and no operator's own."""
    return [
        path for path in root.iterdir() if path.name not in _OPERATORS and not path.name.startswith((_STAGING, _ASIDE))
    ]


def _require_empty(root: Path) -> None:
    """Raise Conflict (home_not_empty) where there is more than empty folders, which are removed."""
    for path in _present(root):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
    present = sorted(path.name for path in _present(root))
    if present:
        raise Conflict(
            f"{root} is not empty ({some_of(present, 3)}); restore into another TUNERY_HOME, or with --force, which moves "
            "what is there into a folder of its own",
            code="home_not_empty",
        )


def _require_unused(root: Path) -> None:
    """Raise Conflict (home_in_use) while another process has the database open."""
    if not (root / DATABASE).is_file():
        return
    try:
        with closing(sqlite3.connect(root / DATABASE, timeout=_USED_SECONDS)) as connection:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise Conflict(
                f"{root / DATABASE} is in use; stop the servers and workers of this home first", code="home_in_use"
            ) from error
    except sqlite3.DatabaseError:
        """It is damaged, which may be why a backup is restored."""


def _used(root: Path) -> Conflict:
    return Conflict(f"{root} was used by another process meanwhile; stop it, and restore again", code="home_in_use")


def _free_name(root: Path) -> str:
    number = 1
    while (root / f"{_ASIDE}{number}").exists():
        number += 1
    return f"{_ASIDE}{number}"
