"""Say what is in a backup, and refuse a manifest that names what no backup holds."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated

import msgspec
from msgspec import Meta

from tunery.registry.errors import InvalidInput, some_of
from tunery.registry.storage.schema import HEAD

__all__ = [
    "DATABASE",
    "FORMAT",
    "MANIFEST",
    "MAX_MANIFEST",
    "BackupManifest",
    "Entry",
    "is_safe",
    "object_name",
    "read_manifest",
]

FORMAT = 1
MANIFEST = "tunery-backup.json"
DATABASE = "registry.db"
MAX_MANIFEST = 2**28
"""Bytes: more than two million files."""

_NAME = r"[^/\x00-\x1f\x7f]{1,255}"
_PATH = re.compile(
    rf"registry\.db|config\.toml|blobs/([0-9a-f]{{2}})/\1[0-9a-f]{{62}}|bases/[0-9a-f]{{64}}/{_NAME}"
    rf"|(?:jobs|batches)/{_NAME}(?:/{_NAME}){{1,8}}"
)


class Entry(msgspec.Struct, frozen=True, order=True):
    """A file: its path below the home, the sha256 of its bytes in hex, and how many there are."""

    path: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, Meta(ge=0)]


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds.

    `revision` is the database's migration, `registry` its id. `incomplete` says in words which files the database names
    and the registry no longer had when the backup was made; `outside` names bases whose files are not in the home.
    """

    format: int
    created_at: float
    tunery: str
    revision: str
    registry: str | None
    checkpoints: bool
    entries: tuple[Entry, ...]
    incomplete: dict[str, str] = {}
    outside: tuple[str, ...] = ()

    @property
    def objects(self) -> dict[str, Entry]:
        """The first entry of each different content, by sha256, in order."""
        found: dict[str, Entry] = {}
        for entry in self.entries:
            found.setdefault(entry.sha256, entry)
        return found

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)


def object_name(sha256: str) -> str:
    """Where in a backup an object lies."""
    return f"objects/{sha256[:2]}/{sha256}"


def read_manifest(data: bytes) -> BackupManifest:
    """A manifest that can be restored; raise InvalidInput: backup_too_new, or backup_refused for anything unsafe."""
    try:
        form = msgspec.json.decode(data, type=_Form)
        if form.format > FORMAT:
            raise _too_new(form.tunery, f"format {form.format}")
        manifest = msgspec.json.decode(data, type=BackupManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(f"{MANIFEST} cannot be read ({error})") from error
    if manifest.revision > HEAD:
        raise _too_new(manifest.tunery, f"database {manifest.revision}, and this Tunery knows {HEAD}")
    _check_entries(manifest.entries)
    return manifest


class _Form(msgspec.Struct, frozen=True):
    format: int
    tunery: str = ""


def _check_entries(entries: tuple[Entry, ...]) -> None:
    wrong = [entry.path for entry in entries if not is_safe(entry)]
    if wrong:
        raise _refused(f"it names {some_of([path[:80] for path in wrong], 3)}, which no backup holds")
    counts = Counter(entry.path for entry in entries)
    if twice := [path for path, count in counts.items() if count > 1]:
        raise _refused(f"it names {some_of(twice, 3)} twice")
    if not counts[DATABASE]:
        raise _refused("it has no database")
    sizes: dict[str, int] = {}
    if any(sizes.setdefault(entry.sha256, entry.size) != entry.size for entry in entries):
        raise _refused("it gives one content two sizes")


def is_safe(entry: Entry) -> bool:
    """Whether a backup may hold a file of this name."""
    if _PATH.fullmatch(entry.path) is None or not {".", ".."}.isdisjoint(entry.path.split("/")):
        return False
    if any("\ud800" <= character <= "\udfff" for character in entry.path):
        return False
    return not entry.path.startswith("blobs/") or entry.path.endswith(entry.sha256)


def _refused(why: str) -> InvalidInput:
    return InvalidInput(f"this is not a backup that can be restored: {why}", code="backup_refused")


def _too_new(version: str, what: str) -> InvalidInput:
    return InvalidInput(
        f"the backup was made by a newer Tunery ({version[:40]}; {what}): upgrade Tunery, then restore it",
        code="backup_too_new",
    )
