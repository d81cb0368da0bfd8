"""Look after what is stored: verify it, and collect what nothing needs any more."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
from sqlalchemy import Connection, select

from tunery.registry import data_files
from tunery.registry.base_files import changed_files
from tunery.registry.evals import table as evals
from tunery.registry.home import Home
from tunery.registry.jobs import checkpoints
from tunery.registry.records import Base, Version
from tunery.registry.storage import leases, schema
from tunery.registry.storage.blobs import BlobStore
from tunery.registry.storage.database import Database
from tunery.registry.storage.digest import tree_digest
from tunery.registry.storage.disk import room_or_not
from tunery.registry.storage.manifests import Manifests
from tunery.registry.storage.mirror import Mirror

__all__ = ["Collected", "Problem", "collect", "needed_blobs", "verify", "verify_all"]


class Problem(msgspec.Struct, frozen=True):
    """Something wrong with a file of a stored version or a base; `version` names either."""

    version: str
    path: str
    problem: str


class Collected(msgspec.Struct, frozen=True):
    """What a collection removed, or with `dry_run` would remove."""

    blobs: int
    staged: int
    packed: int
    bytes: int


def verify(blobs: BlobStore, versions: list[Version]) -> list[Problem]:
    """Read every file of `versions` and compare it with its digest."""
    problems = []
    for version in versions:
        for entry in version.files:
            problem = blobs.problem(entry)
            if problem is not None:
                problems.append(Problem(version.name, entry.path, problem))
    return problems


def verify_all(
    home: Home, blobs: BlobStore, manifests: Manifests, versions: list[Version], bases: list[Base]
) -> list[Problem]:
    """Verify the files and manifests of versions, the bases in the home, and the packed bases."""
    return [*verify(blobs, versions), *_verify_manifests(manifests, versions), *_verify_bases(home, bases)]


def _verify_manifests(manifests: Manifests, versions: list[Version]) -> list[Problem]:
    """Whether the database could be made again from the manifests."""
    return [
        Problem(version.name, f"manifests/versions/{version.adapter}/{version.number}.json", problem)
        for version in versions
        if (problem := _manifest_problem(manifests, version)) is not None
    ]


def _manifest_problem(manifests: Manifests, version: Version) -> str | None:
    kept = manifests.version(version.adapter, version.number)
    if kept is not None and (kept.digest, kept.files) == (version.digest, version.files):
        return None
    return "is missing or damaged: `tunery registry rebuild` writes it again"


def _verify_bases(home: Home, bases: list[Base]) -> list[Problem]:
    """Compare the bases in the home, and their packed copies, with their digests."""
    problems = []
    for base in bases:
        folder = home.bases / base.digest
        if folder.is_dir():
            for name in changed_files(folder, base.digest, home.base_stamps(base.digest), whole=True):
                again = f"is damaged: add the base again with `tunery bases add {base.name}`"
                problems.append(Problem(f"base {base.name}", name, again))
        for path in sorted(home.packed.glob(f"{base.digest}-*.safetensors")):
            digest = path.stem.rpartition("-")[2]
            if len(digest) == len(base.digest) and tree_digest(path) != digest:
                problems.append(
                    Problem(
                        f"base {base.name}", path.name, "is damaged: delete it; the next start packs the base again"
                    )
                )
    return problems


def collect(
    database: Database,
    mirror: Mirror,
    blobs: BlobStore,
    home: Home,
    *,
    now: float,
    older_than: float,
    dry_run: bool,
) -> Collected:
    """Remove blobs, staged files and packed bases that nothing needs and that are older than `older_than` seconds.

    Runs under the write lock and with the blob store closed to publishers; what one of them has stored is named by its
    lease. Raise StorageFailed where the blobs are not this database's (registry_mismatch), or it does not know all
    versions (registry_behind).
    """
    with database.write() as connection, blobs.closed() as leased:
        mirror.require_same_registry(connection)
        mirror.require_up_to_date(connection)
        if not dry_run:
            with room_or_not():
                mirror.sync(connection)
        needed = needed_blobs(connection) | leased
        kinds = (
            [path for sha256, path in blobs.all() if sha256 not in needed],
            [*home.staging.iterdir(), *mirror.manifests.leftovers(), *_unfinished(connection, home)],
            _unknown(connection, home.packed),
        )
        freed = [
            [
                size
                for path in paths
                if _age(path, now) > older_than and (size := _remove(path, dry_run=dry_run)) is not None
            ]
            for paths in kinds
        ]
    blobs_removed, staged, packed = map(len, freed)
    return Collected(blobs_removed, staged, packed, sum(map(sum, freed)))


def needed_blobs(connection: Connection) -> set[str]:
    """The sha256 of every blob that anything needs."""
    of_versions = set(connection.scalars(select(schema.files.c.sha256).distinct()))
    others = (data_files, checkpoints, evals)
    return of_versions.union(*(table.needed_blobs(connection) for table in others))


def _unfinished(connection: Connection, home: Home) -> list[Path]:
    """Folders of uploads and batches that go on no more."""
    uploads, batches = schema.uploads.c, schema.batches.c
    alive = set(connection.scalars(select(uploads.id).where(uploads.status == "pending")))
    alive |= set(connection.scalars(select(batches.id).where(batches.ended.is_(False))))
    return [
        path
        for folder in (home.uploads, home.batches)
        if folder.is_dir()
        for path in folder.iterdir()
        if path.name not in alive
    ]


def _unknown(connection: Connection, packed: Path) -> list[Path]:
    """Files in `packed` that do not begin with the digest of a base, such as one whose writing was cut short."""
    digests = set(connection.scalars(select(schema.bases.c.digest)))
    return [path for path in packed.glob("*") if path.name.partition("-")[0] not in digests]


def _age(path: Path, now: float) -> float:
    """Seconds since anything in it was written: a large base may be on its way in for hours."""
    try:
        return now - max(each.stat().st_mtime for each in (path, *path.rglob("*")))
    except OSError:
        # It is changing at this moment, so it is in use.
        return 0.0


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what vanishes meanwhile is not counted."""
    total = 0
    for each in (path, *path.rglob("*")):
        try:
            total += each.stat().st_size if each.is_file() else 0
        except OSError:
            continue
    return total


def _remove(path: Path, *, dry_run: bool) -> int | None:
    """Remove a file or folder unless somebody holds a lease on it; the bytes freed, or None."""
    with leases.exclusive(path, wait=False) as free:
        if not free:
            return None
        size = _size(path)
        if dry_run:
            return size
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        return size
