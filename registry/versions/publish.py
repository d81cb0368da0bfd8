"""Publish a version in two phases: stage and verify its bytes, then make it visible in one transaction.

A crash at any point leaves the old state or the new one; what was staged is collected later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, insert, select, update

from tunery.registry import audit
from tunery.registry.errors import InvalidInput, StorageFailed, TuneryError
from tunery.registry.names import check_adapter, check_alias, tenant_of
from tunery.registry.peft.artifact import check_artifact, files_of
from tunery.registry.records import Base, FileEntry, NewVersion, Version
from tunery.registry.storage import schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.digest import file_digest
from tunery.registry.storage.mirror import Mirror
from tunery.registry.versions import aliases
from tunery.registry.versions.aliases import MoveNote
from tunery.registry.versions.digest import version_digest
from tunery.registry.versions.lineage import record_data
from tunery.registry.versions.reports import check_names, report_files

__all__ = ["Draft", "commit", "digest_of", "insert_version", "stage"]

Watch = Callable[[str], None]
"""Called with the name of each step as it begins; tests kill the process there."""
Ending = Callable[[Connection, Version], None]
"""Ends the job that made a version, within the transaction that makes it visible."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A version that is stored but not yet visible; `manifest` and `metrics` are as they read back from JSON."""

    new: NewVersion
    digest: str
    files: tuple[FileEntry, ...]
    manifest: dict[str, Any]
    metrics: dict[str, float]


def stage(blobs: BlobStore, new: NewVersion, *, lease: Path, watch: Watch, others: Iterable[Base] = ()) -> Draft:
    """Phase one: check the artifact, copy its files in under a lease of the blobs, and verify the copies.

    `others` are the other bases known here. Raise InvalidInput, ArtifactRefused or StorageFailed; nothing is changed
    then.
    """
    check_adapter(new.adapter)
    if new.alias is not None:
        check_alias(new.alias)
    manifest, metrics = _json_values(new.manifest, new.metrics)
    watch("check")
    with _reading(new.folder):
        before = _stamps(new.folder)
        check_names(before)
        config = check_artifact(new.folder, base=new.base, others=others, trust_base=new.trust_base)
        report = report_files(new.report)
    entries = []
    for name, path in (files_of(new.folder) | report).items():
        watch(f"store {name}")
        entries.append(blobs.put(path, name=name, lease=lease))
    with _reading(new.folder):
        changed = _stamps(new.folder) != before
    if changed:
        raise StorageFailed(
            f"{new.folder.name} was changed while it was being published; publish again when it is finished"
        )
    watch("verify")
    _verify(blobs, entries)
    return Draft(
        new=new,
        digest=version_digest(entries, config, base_digest=new.base.digest),
        files=tuple(sorted(entries)),
        manifest=manifest,
        metrics=metrics,
    )


def _verify(blobs: BlobStore, entries: Iterable[FileEntry]) -> None:
    for entry in entries:
        problem = blobs.problem(entry)
        if problem is not None:
            raise StorageFailed(
                f"{entry.path} {problem} right after it was stored: check the disk; nothing was changed"
            )


def digest_of(folder: Path, *, base: Base) -> tuple[str, tuple[FileEntry, ...]]:
    """The digest and files that publishing `folder` would give; nothing is stored."""
    with _reading(folder):
        check_names(files_of(folder))
        config = check_artifact(folder, base=base)
        entries = [FileEntry(name, *file_digest(path)) for name, path in files_of(folder).items()]
    return version_digest(entries, config, base_digest=base.digest), tuple(sorted(entries))


def commit(
    mirror: Mirror, blobs: BlobStore, draft: Draft, *, at: float, watch: Watch, ending: Ending | None = None
) -> Version:
    """Phase two: number the version, make it visible, move its alias and end its job, all or nothing."""
    watch("begin")
    with mirror.write(watch=watch) as change:
        connection, adapter = change.connection, draft.new.adapter
        mirror.require_same_registry(connection)
        _require_blobs(blobs, draft)
        version = _version(draft, _next_number(connection, adapter, at), at)
        if mirror.manifests.has(version.adapter, version.number):
            raise mirror.outdated([version.name])
        watch("insert")
        insert_version(connection, version)
        made = {"digest": version.digest, "base": version.base, "method": version.method}
        audit.record(
            connection,
            "version.publish",
            version.name,
            at=at,
            tenant=tenant_of(adapter),
            actor=draft.new.actor,
            after=made,
        )
        if draft.new.alias is not None:
            note = MoveNote(actor=draft.new.actor, at=at, reason="published", kind="publish")
            aliases.move(connection, adapter, draft.new.alias, version.number, note)
            change.moved(adapter)
        if ending is not None:
            ending(connection, version)
        watch("commit")
        change.published(version)
    watch("done")
    return version


def insert_version(connection: Connection, version: Version) -> None:
    """Insert the rows of a version whose number was already given out."""
    row = msgspec.structs.asdict(version)
    del row["files"], row["aliases"]
    connection.execute(insert(schema.versions).values(**row))
    place = {"adapter": version.adapter, "number": version.number}
    connection.execute(insert(schema.files), [place | msgspec.structs.asdict(entry) for entry in version.files])
    record_data(connection, version.adapter, version.number, version.manifest)


def _version(draft: Draft, number: int, at: float) -> Version:
    new = draft.new
    return Version(
        adapter=new.adapter,
        number=number,
        digest=draft.digest,
        base=new.base.name,
        base_digest=new.base.digest,
        method=new.method,
        files=draft.files,
        manifest=draft.manifest,
        metrics=draft.metrics,
        created_at=at,
        aliases=(new.alias,) if new.alias else (),
    )


def _json_values(manifest: dict[str, Any], metrics: dict[str, float]) -> tuple[dict[str, Any], dict[str, float]]:
    """Both as they will read back from JSON. Of a metric that is not finite only the name is kept, in the manifest."""
    finite = {name: float(value) for name, value in metrics.items() if isfinite(value)}
    lost = sorted(set(metrics) - set(finite))
    try:
        decoded = msgspec.json.decode(msgspec.json.encode(manifest | ({"metrics_not_finite": lost} if lost else {})))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the manifest cannot be written as JSON: {error}", param="manifest") from error
    return decoded, finite


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn an OSError in the block into StorageFailed."""
    try:
        yield
    except TuneryError:
        raise
    except OSError as error:
        raise StorageFailed(
            f"{folder.name} cannot be read: {error.filename or ''} {error.strerror}; nothing was changed"
        ) from error


def _stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and modification time of each file by name: they differ when one is written or replaced."""
    stats = {name: path.stat() for name, path in files_of(folder).items()}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _require_blobs(blobs: BlobStore, draft: Draft) -> None:
    """Raise StorageFailed unless every file is stored; the lock that we hold keeps collections away."""
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
