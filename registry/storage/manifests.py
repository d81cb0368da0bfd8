"""Keep a copy of what the database holds beside the blobs, from which a lost database can be made again.

    manifests/registry.json               which registry the blobs belong to
    manifests/versions/acme/support/3.json      one version; `3.removed` in its place once it was removed
    manifests/aliases/acme/support.jsonl  every move of the adapter's aliases, one a line
    manifests/bases/DIGEST.json           one base

A version's manifest is on the disk before its transaction ends, under a pending name, and gets its own name afterwards.
So one that has its own name belongs to a version that was published.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tunery.registry.errors import InvalidInput
from tunery.registry.names import check_adapter
from tunery.registry.records import AliasMove, Base, Version
from tunery.registry.storage.disk import sync, write_durably

__all__ = ["Manifests", "Move"]

T = TypeVar("T")

_PENDING, _REMOVED = ".pending", ".removed"
_TAIL = 1 << 16
"""Bytes in which the last moves of an adapter are looked for."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class _Marker(msgspec.Struct, frozen=True):
    id: str


class Move(AliasMove, frozen=True, kw_only=True):
    """A move with the number the database gave it."""

    id: int


class Manifests:
    """The folder of manifests. A file that cannot be read counts as missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._marker = folder / "registry.json"
        self._versions, self._aliases, self._bases = (folder / name for name in ("versions", "aliases", "bases"))

    # -- which registry -----------------------------------------------------------------------------------------------

    def id(self) -> str | None:
        """The id of the registry that the blobs belong to, or None where it is missing or unreadable."""
        marker = _read(self._marker, _Marker)
        return marker.id if marker else None

    def claim(self, registry_id: str) -> None:
        """Record which registry the blobs belong to."""
        write_durably(self._marker, msgspec.json.encode(_Marker(registry_id)))

    # -- versions -----------------------------------------------------------------------------------------------------

    def stage(self, version: Version) -> Path:
        """Put a version's manifest on the disk under its pending name."""
        path = self._version(version.adapter, version.number)
        pending = path.with_name(f"{path.name}{_PENDING}")
        write_durably(pending, _encode(msgspec.structs.replace(version, aliases=())))
        return pending

    def settle(self, pending: Path) -> None:
        """Give a staged manifest its own name."""
        pending.rename(pending.with_name(pending.name.removesuffix(_PENDING)))
        sync(pending.parent)

    def retire(self, adapter: str, number: int) -> None:
        """Reduce the manifest of a removed version to a record that its number was given out."""
        path = self._version(adapter, number)
        with suppress(FileNotFoundError):
            path.replace(path.with_suffix(_REMOVED))
            sync(path.parent)

    def has(self, adapter: str, number: int) -> bool:
        """Whether a version of that number was published and not removed."""
        return self._version(adapter, number).exists()

    def numbers(self) -> Iterator[tuple[str, int]]:
        """Every version that was published and not removed."""
        return ((adapter, number) for adapter, number, suffix in self._entries() if suffix == ".json")

    def leftovers(self) -> list[Path]:
        """Files of publications that did not finish, or are about to."""
        return [*self._pending(), *self._folder.rglob(".*")]

    def highest(self) -> dict[str, int]:
        """The highest version number of each adapter that is recorded here."""
        numbers: dict[str, int] = {}
        for adapter, number, _ in self._entries():
            numbers[adapter] = max(number, numbers.get(adapter, 0))
        return numbers

    def version(self, adapter: str, number: int) -> Version | None:
        """A version as its manifest has it; None where that is unreadable, or another version's."""
        path = self._version(adapter, number)
        version = _read(path, Version) or _read(path.with_name(f"{path.name}{_PENDING}"), Version)
        if version is None or (version.adapter, version.number) != (adapter, number) or not _is_sound(version):
            return None
        return version

    def unfinished(self) -> Iterator[tuple[str, int]]:
        """Versions of which there is only a pending manifest."""
        for path in self._pending():
            adapter, number = _named(path.with_name(path.name.removesuffix(_PENDING)))
            if number and not (self.has(adapter, number) or path.with_name(f"{number}{_REMOVED}").exists()):
                yield adapter, number

    # -- aliases and bases --------------------------------------------------------------------------------------------

    def last_move(self, adapter: str) -> int:
        """The number of the last move recorded for an adapter, 0 when there is none."""
        return max((move.id for move in self._moves(self._alias(adapter), last=_TAIL)), default=0)

    def add_moves(self, adapter: str, moves: Iterable[Move]) -> None:
        """Append moves to an adapter's."""
        path = self._alias(adapter)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The line break in front ends a line that a crash cut short; empty lines mean nothing.
        lines = b"".join(b"\n" + msgspec.json.encode(move) for move in moves)
        with path.open("ab") as file:
            file.write(lines + b"\n")
        sync(path)

    def write_moves(self, adapter: str, moves: Iterable[Move]) -> None:
        """Replace an adapter's recorded moves."""
        write_durably(self._alias(adapter), b"".join(msgspec.json.encode(move) + b"\n" for move in moves))

    def moves(self) -> list[Move]:
        """Every move of every adapter's aliases; lines that cannot be read are skipped."""
        return [move for path in sorted(self._aliases.glob("*/*.jsonl")) for move in self._moves(path)]

    def write_base(self, base: Base) -> None:
        """Record a base, with its path as the database has it."""
        write_durably(self._bases / f"{base.digest}.json", _encode(base))

    def bases(self) -> list[Base]:
        """Every base that can be read."""
        bases = [_read(path, Base) for path in sorted(self._bases.glob("*.json"))]
        return [base for base in bases if base is not None]

    # -- inside -------------------------------------------------------------------------------------------------------

    def _pending(self) -> list[Path]:
        return sorted(self._versions.glob(f"*/*/*.json{_PENDING}"))

    def _version(self, adapter: str, number: int) -> Path:
        return self._versions / adapter / f"{number}.json"

    def _alias(self, adapter: str) -> Path:
        return self._aliases / f"{adapter}.jsonl"

    def _entries(self) -> Iterator[tuple[str, int, str]]:
        for path in sorted(self._versions.glob("*/*/*")):
            adapter, number = _named(path)
            if number and path.suffix in (".json", _REMOVED):
                yield adapter, number, path.suffix

    def _moves(self, path: Path, *, last: int | None = None) -> list[Move]:
        """The moves in a file, or those in its `last` bytes; a line that is cut short is skipped."""
        try:
            with path.open("rb") as file:
                if last is not None:
                    file.seek(max(0, path.stat().st_size - last))
                lines = file.read().splitlines()
        except OSError:
            return []
        moves: dict[int, Move] = {}
        for line in lines:
            with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                move = msgspec.json.decode(line, type=Move)
                moves[move.id] = move
        return list(moves.values())


def _named(path: Path) -> tuple[str, int]:
    """The adapter and number in a manifest's path; number 0 where it has none."""
    adapter, number = "/".join(path.parts[-3:-1]), path.stem
    try:
        check_adapter(adapter)
    except InvalidInput:
        return adapter, 0
    return adapter, int(number) if number.isascii() and number.isdigit() else 0


def _is_sound(version: Version) -> bool:
    """Whether every sha256, which becomes part of a path, is one."""
    return bool(version.files) and all(_SHA256.fullmatch(entry.sha256) for entry in version.files)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _encode(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"
