"""Owns the two phases of publishing: bytes staged and verified first, then one transaction that makes the version visible.

Killed at any point it leaves the old state or the new one; what it staged is collected later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, insert, select, update

from tunery.registry.errors import InvalidInput, StorageFailed, TuneryError
from tunery.registry.names import check_adapter, check_alias
from tunery.registry.peft.artifact import check_artifact, files_of
from tunery.registry.records import Base, FileEntry, Version
from tunery.registry.storage import schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.digest import file_digest, version_digest
from tunery.registry.storage.mirror import Mirror
from tunery.registry.versions import aliases
from tunery.registry.versions.lineage import record_data
from tunery.registry.versions.reports import check_names, report_files

__all__ = ["Draft", "commit", "digest_of", "insert_version", "stage"]

Watch = Callable[[str], None]
"""Told the name of each step as it begins; tests kill the process there."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A version that is stored but not yet visible."""

    adapter: str
    digest: str
    base: Base
    method: str
    files: tuple[FileEntry, ...]
    manifest: dict[str, Any]
    metrics: dict[str, float]
    alias: str | None
    actor: str


def stage(
    blobs: BlobStore,
    folder: Path,
    *,
    lease: Path,
    adapter: str,
    base: Base,
    method: str,
    manifest: dict[str, Any],
    metrics: dict[str, float],
    alias: str | None,
    actor: str,
    watch: Watch,
    others: Iterable[Base] = (),
    trust_base: bool = False,
    report: Path | None = None,
) -> Draft:
    """Phase one: check the artifact, copy its files in under a lease of the blobs, and verify the copies."""
    check_adapter(adapter)
    if alias is not None:
        check_alias(alias)
    manifest, metrics = _plain(manifest, metrics)
    watch("check")
    with _reading(folder):
        looked_at = _stamps(folder)
        check_names(looked_at)
        config = check_artifact(folder, base=base, others=others, trust_base=trust_base)
        told = report_files(report)
    entries = []
    for name, path in (files_of(folder) | told).items():
        watch(f"store {name}")
        entries.append(blobs.put(path, name=name, lease=lease))
    with _reading(folder):
        changed = _stamps(folder) != looked_at
    if changed:
        raise StorageFailed(f"{folder.name} was changed while it was published; publish again when it is finished")
    watch("verify")
    for entry in entries:
        problem = blobs.check(entry)
        if problem is not None:
            raise StorageFailed(
                f"{entry.path} {problem} right after it was stored: check the disk; nothing was changed"
            )
    return Draft(
        adapter=adapter,
        digest=version_digest(entries, config, base_digest=base.digest),
        base=base,
        method=method,
        files=tuple(sorted(entries)),
        manifest=manifest,
        metrics=metrics,
        alias=alias,
        actor=actor,
    )


def digest_of(folder: Path, *, base: Base) -> tuple[str, tuple[FileEntry, ...]]:
    """The digest and files that publishing `folder` would give; nothing is stored."""
    with _reading(folder):
        check_names(files_of(folder))
        config = check_artifact(folder, base=base)
        entries = [FileEntry(name, *file_digest(path)) for name, path in files_of(folder).items()]
    return version_digest(entries, config, base_digest=base.digest), tuple(sorted(entries))


def commit(mirror: Mirror, blobs: BlobStore, draft: Draft, *, at: float, watch: Watch) -> Version:
    """Phase two: number the version, make it visible and move its alias, all or nothing."""
    watch("begin")
    with mirror.write(watch=watch) as change:
        connection = change.connection
        mirror.check(connection)
        _check_present(blobs, draft)
        version = _numbered(draft, _next_number(connection, draft.adapter, at), at)
        if mirror.manifests.has(version.adapter, version.number):
            raise mirror.behind([version.name])
        watch("insert")
        insert_version(connection, version)
        if draft.alias is not None:
            aliases.move(
                connection,
                draft.adapter,
                draft.alias,
                version.number,
                actor=draft.actor,
                at=at,
                reason="published",
                kind="publish",
            )
            change.moved(draft.adapter)
        watch("commit")
        change.published(version)
    watch("done")
    return version


def insert_version(connection: Connection, version: Version) -> None:
    """Write down a version whose adapter has been given its number."""
    row = msgspec.structs.asdict(version)
    del row["files"], row["aliases"]
    connection.execute(insert(schema.versions).values(**row))
    place = {"adapter": version.adapter, "number": version.number}
    connection.execute(insert(schema.files), [place | msgspec.structs.asdict(entry) for entry in version.files])
    record_data(connection, version.adapter, version.number, version.manifest)


def _numbered(draft: Draft, number: int, at: float) -> Version:
    return Version(
        adapter=draft.adapter,
        number=number,
        digest=draft.digest,
        base=draft.base.name,
        base_digest=draft.base.digest,
        method=draft.method,
        files=draft.files,
        manifest=draft.manifest,
        metrics=draft.metrics,
        created_at=at,
        aliases=(draft.alias,) if draft.alias else (),
    )


def _plain(manifest: dict[str, Any], metrics: dict[str, float]) -> tuple[dict[str, Any], dict[str, float]]:
    """Both as they will read back from JSON. A metric that is no finite number is only named, in the manifest."""
    finite = {name: float(value) for name, value in metrics.items() if isfinite(value)}
    lost = sorted(set(metrics) - set(finite))
    try:
        plain = msgspec.json.decode(msgspec.json.encode(manifest | ({"metrics_not_finite": lost} if lost else {})))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the manifest cannot be written as JSON: {error}", param="manifest") from error
    return plain, finite


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """What cannot be read is said so."""
    try:
        yield
    except TuneryError:
        raise
    except OSError as error:
        raise StorageFailed(
            f"{folder.name} cannot be read: {error.filename or ''} {error.strerror}; nothing was changed"
        ) from error


def _stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What changes when a file is written or replaced, by name."""
    stats = {name: path.stat() for name, path in files_of(folder).items()}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _check_present(blobs: BlobStore, draft: Draft) -> None:
    """A collection holds the same lock, so what is here now stays."""
    missing = [entry.path for entry in draft.files if not blobs.path(entry.sha256).exists()]
    if missing:
        raise StorageFailed(f"{', '.join(missing)} vanished while publishing; publish again")


def _next_number(connection: Connection, adapter: str, at: float) -> int:
    """One more than the highest number ever given to this adapter."""
    last = connection.scalar(select(schema.adapters.c.last_number).where(schema.adapters.c.name == adapter))
    if last is None:
        connection.execute(insert(schema.adapters).values(name=adapter, last_number=1, created_at=at))
        return 1
    connection.execute(update(schema.adapters).where(schema.adapters.c.name == adapter).values(last_number=last + 1))
    return int(last) + 1
