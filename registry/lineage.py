"""Owns where versions come from: which data files each was trained on, and which versions came before it.

Refuses to trust a name that can move: a parent is the version with the recorded digest, whatever it is called now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Connection, and_, insert, select

from tunery.registry import schema
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.records import DataUse, Version

if TYPE_CHECKING:
    from tunery.registry.registry import Registry

__all__ = ["Ancestor", "data_of", "line_of", "record_data", "uses_of"]

_SHORTEST, _SHA256 = 8, 64


class Ancestor(msgspec.Struct, frozen=True, kw_only=True):
    """A version in a line of versions. `version` is None where none with that `digest` is here; `again` says that it is in the line
    already, so that nothing more follows."""

    name: str
    digest: str
    version: Version | None = None
    again: bool = False


def line_of(registry: Registry, version: Version) -> list[Ancestor]:
    """A version, what it was continued from, and so on back to the base."""
    line, seen = [Ancestor(name=version.name, digest=version.digest, version=version)], {version.digest}
    while (named := _parent(line[-1].version)) is not None:
        name, digest = named
        again = digest in seen
        found = None if again else _find(registry, name, digest)
        line.append(Ancestor(name=found.name if found else name, digest=digest, version=found, again=again))
        seen.add(digest)
    return line


def data_of(manifest: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(sha256, name, role) of every data file that a manifest names; what is no such entry is passed over."""
    entries = manifest.get("data")
    files = [entry for entry in entries if _is_file(entry)] if isinstance(entries, list) else []
    last = len(files) - 1 if manifest.get("validation") is True else len(files)
    return [
        (file["sha256"], str(file.get("name", "")), "train" if index < last else "held-out")
        for index, file in enumerate(files)
    ]


def record_data(connection: Connection, adapter: str, number: int, manifest: Mapping[str, Any]) -> None:
    """Write down which files a version was trained on."""
    rows = [
        {"adapter": adapter, "number": number, "position": index, "sha256": sha256, "name": name, "role": role}
        for index, (sha256, name, role) in enumerate(data_of(manifest))
    ]
    if rows:
        connection.execute(insert(schema.version_data), rows)


def uses_of(connection: Connection, sha256: str) -> list[DataUse]:
    """Every use of the file with this sha256, or with one that begins so; raise where it is no sha256 or names several files."""
    if not (_SHORTEST <= len(sha256) <= _SHA256 and set(sha256) <= set("0123456789abcdef")):
        raise InvalidInput(f"{sha256!r} is no sha256: write {_SHORTEST} to {_SHA256} of 0-9 and a-f", param="sha256")
    data = schema.version_data.c
    begins = and_(data.sha256 >= sha256, data.sha256 <= sha256 + "g")
    query = select(schema.version_data).where(begins).order_by(data.adapter, data.number, data.position)
    uses = [
        DataUse(adapter=row.adapter, number=row.number, sha256=row.sha256, name=row.name, role=row.role)
        for row in connection.execute(query)
    ]
    if len({use.sha256 for use in uses}) > 1:
        raise InvalidInput(f"several files have a sha256 that begins with {sha256!r}; write more of it", param="sha256")
    return uses


def _parent(version: Version | None) -> tuple[str, str] | None:
    """Name and digest of what a version continued from, as its manifest has them."""
    named = version.manifest.get("parent") if version else None
    if not isinstance(named, dict) or not isinstance(named.get("digest"), str):
        return None
    return str(named.get("version", "?")), named["digest"]


def _find(registry: Registry, name: str, digest: str) -> Version | None:
    """The version of that name if it has that digest, else any that has it."""
    try:
        found = registry.resolve(name)
        if found.digest == digest:
            return found
    except (NotFound, InvalidInput):
        pass
    try:
        return registry.by_digest(digest)
    except NotFound:
        return None


def _is_file(entry: Any) -> bool:
    sha256 = entry.get("sha256") if isinstance(entry, dict) else None
    return isinstance(sha256, str) and len(sha256) == _SHA256
