"""Say where versions come from: the data files each was trained on, and the versions it was continued from.

A parent is the version with the recorded digest, whatever it is called now: names can move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, and_, insert, select

from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.names import parse_reference
from tunery.registry.records import DataUse, Version
from tunery.registry.storage import schema
from tunery.registry.versions import lookup

__all__ = ["Ancestor", "Origin", "UsedFile", "data_of", "line_of", "origin_of", "record_data", "uses_of"]

T = TypeVar("T")

_SHORTEST, _SHA256 = 8, 64


class Ancestor(msgspec.Struct, frozen=True, kw_only=True):
    """A version in a line of ancestors.

    `version` is None where this registry has none with that digest; `again` says that it is in the line already, so
    that the line ends.
    """

    name: str
    digest: str
    version: Version | None = None
    again: bool = False


def line_of(connection: Connection, version: Version) -> list[Ancestor]:
    """A version, the version it was continued from, and so on back to the base."""
    line, seen = [Ancestor(name=version.name, digest=version.digest, version=version)], {version.digest}
    while (named := _parent(line[-1].version)) is not None:
        name, digest = named
        again = digest in seen
        parent = None if again else _find(connection, name, digest)
        line.append(Ancestor(name=parent.name if parent else name, digest=digest, version=parent, again=again))
        seen.add(digest)
    return line


class UsedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A data file as a manifest names it; `rows` is None where it does not say."""

    name: str
    sha256: str
    role: str
    rows: int | None


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a version was made of, as far as its manifest says; that of an imported version says little.

    `data` is in the order in which it was given; `choices` are the parameters that Tunery chose for the run; `allowed`
    are the data checks whose errors were overridden.
    """

    base: str
    base_digest: str
    data: list[UsedFile]
    template: str | None
    template_text: str | None
    seed: int | None
    trainer: str | None
    plugin: str | None
    job: str | None
    packages: dict[str, Any]
    plugins: dict[str, Any]
    hardware: dict[str, Any]
    parameters: dict[str, Any]
    choices: list[dict[str, Any]]
    imported: dict[str, Any]
    allowed: list[Any]


def origin_of(version: Version) -> Origin:
    """Read a version's manifest, whoever wrote it; values of the wrong type are left out."""
    manifest = version.manifest

    def field(kind: type[T], name: str) -> T | None:
        value = manifest.get(name)
        return value if isinstance(value, kind) else None

    return Origin(
        base=version.base,
        base_digest=version.base_digest,
        data=data_of(manifest),
        template=field(str, "template"),
        template_text=field(str, "template_text"),
        seed=field(int, "seed"),
        trainer=field(str, "trainer"),
        plugin=field(str, "plugin"),
        job=field(str, "job"),
        packages=field(dict, "packages") or {},
        plugins=field(dict, "plugins") or {},
        hardware=field(dict, "hardware") or {},
        parameters=field(dict, "parameters") or {},
        choices=[choice for choice in field(list, "choices") or [] if isinstance(choice, dict) and "name" in choice],
        imported=field(dict, "origin") or {},
        allowed=_allowed_rules(field(dict, "data_check")),
    )


def data_of(manifest: Mapping[str, Any]) -> list[UsedFile]:
    """Every data file that a manifest names; entries that are malformed are skipped."""
    entries = manifest.get("data")
    files = [entry for entry in entries if _is_file(entry)] if isinstance(entries, list) else []
    last = len(files) - 1 if manifest.get("validation") is True else len(files)
    return [
        UsedFile(
            name=str(file.get("name", "")),
            sha256=file["sha256"],
            role="train" if index < last else "held-out",
            rows=file["rows"] if isinstance(file.get("rows"), int) else None,
        )
        for index, file in enumerate(files)
    ]


def record_data(connection: Connection, adapter: str, number: int, manifest: Mapping[str, Any]) -> None:
    """Record which data files a version was trained on."""
    rows = [
        {"adapter": adapter, "number": number, "position": index, "sha256": f.sha256, "name": f.name, "role": f.role}
        for index, f in enumerate(data_of(manifest))
    ]
    if rows:
        connection.execute(insert(schema.version_data), rows)


def uses_of(connection: Connection, sha256: str) -> list[DataUse]:
    """Every use of the file with this sha256, or with one that starts with it (8 characters at least).

    Raise InvalidInput where it is not a sha256, or is the start of several.
    """
    if not (_SHORTEST <= len(sha256) <= _SHA256 and set(sha256) <= set("0123456789abcdef")):
        raise InvalidInput(
            f"{sha256!r} is not a sha256: write {_SHORTEST} to {_SHA256} hexadecimal digits", param="sha256"
        )
    data = schema.version_data.c
    prefixed = and_(data.sha256 >= sha256, data.sha256 <= sha256 + "g")
    query = select(schema.version_data).where(prefixed).order_by(data.adapter, data.number, data.position)
    uses = [
        DataUse(adapter=row.adapter, number=row.number, sha256=row.sha256, name=row.name, role=row.role)
        for row in connection.execute(query)
    ]
    if len({use.sha256 for use in uses}) > 1:
        raise InvalidInput(
            f"several files have a sha256 that starts with {sha256!r}; write more of its digits", param="sha256"
        )
    return uses


def _parent(version: Version | None) -> tuple[str, str] | None:
    """Name and digest of the version that another was continued from, as its manifest has them."""
    named = version.manifest.get("parent") if version else None
    if not isinstance(named, dict) or not isinstance(named.get("digest"), str):
        return None
    return str(named.get("version", "?")), named["digest"]


def _find(connection: Connection, name: str, digest: str) -> Version | None:
    """The version of that name if it has that digest, else any that has it."""
    try:
        version = lookup.resolve(connection, parse_reference(name))
        if version.digest == digest:
            return version
    except (NotFound, InvalidInput):
        pass
    try:
        return lookup.by_digest(connection, digest)
    except NotFound:
        return None


def _allowed_rules(data_check: dict[str, Any] | None) -> list[Any]:
    allowed = (data_check or {}).get("allowed")
    return allowed if isinstance(allowed, list) else []


def _is_file(entry: Any) -> bool:
    sha256 = entry.get("sha256") if isinstance(entry, dict) else None
    return isinstance(sha256, str) and len(sha256) == _SHA256
